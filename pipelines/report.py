"""Pipeline ``report``."""

from kfp import dsl

from medseg import components
from medseg.kubeflow import platform_pipeline


@platform_pipeline(
    name="medseg-report", display_name="Report", secrets=("mlflow", "mlflow_artifacts")
)
def report(config_file_path: str, fold: int = -1) -> None:
    """Writes the HTML report on a trained model.

    Args:
        config_file_path: The task's config.
        fold: -1: the fold that the config names.
    """
    components.report(
        config_file_path=config_file_path, run=dsl.PIPELINE_JOB_NAME_PLACEHOLDER, fold=fold
    )
