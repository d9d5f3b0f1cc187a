"""Pipeline ``plan_and_preprocess``."""

from medseg import components
from medseg.kubeflow import platform_pipeline


@platform_pipeline(name="medseg-plan-and-preprocess", display_name="Plan and preprocess")
def plan_and_preprocess(config_file_path: str) -> None:
    """Checks the dataset, lets nnU-Net plan and preprocess it, and lays out the MONAI bundle.

    Args:
        config_file_path: The task's config.
    """
    prepared = components.prepare_dataset(config_file_path=config_file_path)
    planned = components.plan_and_preprocess(config_file_path=config_file_path).after(prepared)
    components.prepare_bundle(config_file_path=config_file_path).after(planned)
