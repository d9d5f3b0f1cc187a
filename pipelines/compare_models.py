"""Pipeline ``compare_models``."""

from kfp import dsl

from medseg import components
from medseg.kubeflow import platform_pipeline


@platform_pipeline(name="medseg-compare-models", display_name="Compare models")
def compare_models(
    model: str,
    baseline: str,
    split: str = "test",
    model_fold: int = -1,
    baseline_fold: int = -1,
    metrics: list[str] = ["Dice", "ASD", "HD95", "volume_error_abs"],  # noqa: B006
) -> None:
    """Compares two models on the same cases, with paired tests and a page of the differences.

    Args:
        model: A config (.yaml), a table of export_metrics (.parquet, .csv) or a summary.json.
        baseline: The same of the model that it is compared with.
        split: validation or test; a summary.json is one set of cases as it is.
        model_fold: Fold of the model; -1: all, with the mean of each case over them.
        baseline_fold: Fold of the baseline; -1: all.
        metrics: Of Dice, IoU, ASD, HD95, volume_error_abs; Holm's correction is over all of them.
    """
    components.compare_models(
        model=model,
        baseline=baseline,
        run=dsl.PIPELINE_JOB_NAME_PLACEHOLDER,
        split=split,
        model_fold=model_fold,
        baseline_fold=baseline_fold,
        metrics=metrics,
    )
