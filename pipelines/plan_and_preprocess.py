"""Pipeline ``plan_and_preprocess``."""

from kfp.dsl.pipeline_task import PipelineTask

from medseg import components
from medseg.kubeflow import platform_pipeline


def plan(config_file_path: str) -> PipelineTask:
    """Adds the stages to the pipeline under construction; returns the last one.

    Args:
        config_file_path: The task's config.
    """
    prepared = components.prepare_dataset(config_file_path=config_file_path)
    planned = components.plan_and_preprocess(config_file_path=config_file_path).after(prepared)
    return components.prepare_bundle(config_file_path=config_file_path).after(planned)


@platform_pipeline(name="medseg-plan-and-preprocess", display_name="Plan and preprocess")
def plan_and_preprocess(config_file_path: str) -> None:
    """Checks the dataset, lets nnU-Net plan and preprocess it, and lays out the MONAI bundle.

    Args:
        config_file_path: The task's config.
    """
    plan(config_file_path)
