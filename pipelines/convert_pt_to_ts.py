"""Pipeline ``convert_pt_to_ts``."""

from medseg import components
from medseg.kubeflow import platform_pipeline


@platform_pipeline(name="medseg-convert-pt-to-ts", display_name="Checkpoint to TorchScript")
def convert_pt_to_ts(config_file_path: str, fold: int = -1) -> None:
    """Packages the trained model as one TorchScript file.

    Args:
        config_file_path: The task's config.
        fold: -1: the fold that the config names.
    """
    components.convert_pt_to_ts(config_file_path=config_file_path, fold=fold)
