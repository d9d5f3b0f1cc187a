"""Component ``check``."""

from kfp.dsl import HTML, Output

from medseg.kubeflow import stage_component


@stage_component(
    gpu=True,
    shared_memory=True,
    secrets=("dicomweb", "mlflow", "mlflow_artifacts", "notify"),
    time_limit_s=1800,
    retries=0,
)
def check(
    run: str,
    table: Output[HTML],
    studies: str = "",
    store: bool = False,
    tracking_uri: str = "",
    claim: str = "",
    gpu_count: str = "",
    compiled_by: str = "",
) -> None:
    """Looks at all that a stage needs: image, volume, GPUs, PACS, MLflow, S3, webhook, clock.

    It succeeds whatever it finds, since Kubeflow shows no table of a stage that failed. A run with
    a mark in an MLflow experiment medseg-check and a test message to the webhook are all that it
    writes outside the volume.

    Args:
        run: Name of the table's folder in reports/.
        table: Each thing with ok, warning or failed, what was found, and what to do.
        studies: DICOMweb URL, dicom://AETITLE@host:port or file:///mnt/Data/folder to look at.
        store: Store one small instance in the PACS.
        tracking_uri: The MLflow server; default: MLFLOW_TRACKING_URI, else the volume's store.
        claim: The claim of the project volume.
        gpu_count: GPUs that the stage asked for.
        compiled_by: The version that compiled the pipeline.
    """
    from pathlib import Path

    from medseg.check import Asked, check_site

    asked = Asked(studies, store, tracking_uri, claim, gpu_count, compiled_by)
    check_site(run, asked, Path(table.path))
