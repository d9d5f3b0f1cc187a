"""Pipeline ``validate``."""

from kfp import dsl

from medseg import components
from medseg.kubeflow import platform_pipeline


@platform_pipeline(
    name="medseg-validate", display_name="Validate", secrets=("mlflow", "mlflow_artifacts")
)
def validate(config_file_path: str, fold: int = -1) -> None:
    """Predicts the validation cases, measures them, and writes the report.

    Args:
        config_file_path: The task's config.
        fold: -1: the fold that the config names.
    """
    validated = components.validate(config_file_path=config_file_path, fold=fold)
    components.report(
        config_file_path=config_file_path, run=dsl.PIPELINE_JOB_NAME_PLACEHOLDER, fold=fold
    ).after(validated)
