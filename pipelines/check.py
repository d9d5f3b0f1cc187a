"""Pipeline ``check``."""

from kfp import dsl

from medseg import __version__, components
from medseg.kubeflow import load_settings, platform_arguments, platform_pipeline


@platform_pipeline(
    name="medseg-check",
    display_name="Check",
    secrets=("dicomweb", "mlflow", "mlflow_artifacts", "notify", "registry"),
)
def check(
    studies: str = "",
    store: bool = False,
    tracking_uri: str = "",
    registry: str = "",
    push: bool = False,
    insecure_registry: bool = False,
    builder_image: str = load_settings().image("builder"),  # noqa: ARG001 - for check_beside
) -> None:
    """Is this site ready? One table of all that the stages need, each with what to do.

    Args:
        studies: DICOMweb URL, dicom://AETITLE@host:port or file:///mnt/Data/folder to look at.
        store: Store one small instance in the PACS, of a patient MEDSEG-CHECK.
        tracking_uri: The MLflow server; default: the store on the volume.
        registry: Registry and path to look at, such as registry.example.org/imaging.
        push: Push an empty image there, medseg-check:empty.
        insecure_registry: The registry speaks plain HTTP or has a certificate of its own.
        builder_image: Image that the stage check_beside runs in.
    """
    settings, given = load_settings(), platform_arguments()  # without what a site has fixed
    components.check(
        run=dsl.PIPELINE_JOB_NAME_PLACEHOLDER,
        studies=studies,
        store=store,
        tracking_uri=tracking_uri,
        claim=given.get("pvc_name", settings.pvc_name),
        gpu_count=given.get("gpu_count", settings.gpu_count),
        compiled_by=__version__,
    )
    # at the same time on a cluster: the volume must bear two pods
    components.check_beside(
        run=dsl.PIPELINE_JOB_NAME_PLACEHOLDER,
        registry=registry,
        push=push,
        insecure_registry=insecure_registry,
    )
