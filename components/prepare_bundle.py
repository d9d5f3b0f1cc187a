"""Component ``prepare_bundle``."""

from kfp.dsl import Artifact, Output

from medseg.kubeflow import stage_component


@stage_component()
def prepare_bundle(config_file_path: str, bundle: Output[Artifact]) -> None:
    """Lays out the MONAI bundle: metadata, inference configuration, documentation.

    Args:
        config_file_path: The task's config.
        bundle: Where the bundle lies, relative to the data root.
    """
    from medseg.bundle import prepare_bundle as prepare
    from medseg.config import load_config
    from medseg.project import result, stage

    with stage("prepare_bundle", target=config_file_path) as root:
        folder = prepare(load_config(config_file_path, root))
        bundle.metadata["path"] = root.relative(folder)
        bundle.uri = root.address(folder)
        result("bundle", folder)
