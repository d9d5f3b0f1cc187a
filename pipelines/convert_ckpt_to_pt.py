"""Pipeline ``convert_ckpt_to_pt``."""

from medseg import components
from medseg.kubeflow import platform_pipeline


@platform_pipeline(
    name="medseg-convert-ckpt-to-pt", display_name="Lightning checkpoint to nnU-Net and bundle"
)
def convert_ckpt_to_pt(config_file_path: str, fold: int = -1) -> None:
    """Brings a training by Lightning into nnU-Net's layout and the bundle.

    Args:
        config_file_path: The task's config.
        fold: -1: the fold that the config names.
    """
    components.convert_ckpt_to_pt(config_file_path=config_file_path, fold=fold)
