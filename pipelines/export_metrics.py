"""Pipeline ``export_metrics``."""

from kfp import dsl

from medseg import components
from medseg.kubeflow import platform_pipeline


@platform_pipeline(name="medseg-export-metrics", display_name="Export metrics")
def export_metrics(config_file_path: str, folds: list[int] = []) -> None:  # noqa: B006
    """Writes all numbers of a task as one table, with confidence intervals of the means.

    Args:
        config_file_path: The task's config.
        folds: Folds to take; [-1]: the one that the config names; []: all with results.
    """
    components.export_metrics(
        config_file_path=config_file_path, run=dsl.PIPELINE_JOB_NAME_PLACEHOLDER, folds=folds
    )
