"""Component ``compare_models``."""

from kfp.dsl import HTML, Dataset, Output

from medseg.kubeflow import stage_component


@stage_component()
def compare_models(
    model: str,
    baseline: str,
    run: str,
    table: Output[Dataset],
    html: Output[HTML],
    split: str = "test",
    model_fold: int = -1,
    baseline_fold: int = -1,
    metrics: list[str] = ["Dice", "ASD", "HD95", "volume_error_abs"],  # noqa: B006
) -> None:
    """Compares two models on the same cases: Wilcoxon's test with Holm's correction, intervals.

    Args:
        model: A config (.yaml), a table of export_metrics (.parquet, .csv) or a summary.json.
        baseline: The same of the model that it is compared with.
        run: Name of the folder in reports/.
        table: Every structure and metric: means, difference, interval, p (comparison.parquet).
        html: The same as a page, with the difference of every case.
        split: validation or test; a summary.json is one set of cases as it is.
        model_fold: Fold of the model; -1: all, with the mean of each case over them.
        baseline_fold: Fold of the baseline; -1: all.
        metrics: Of Dice, IoU, ASD, HD95, volume_error_abs; Holm's correction is over all of them.
    """
    import shutil

    from medseg.evaluation import compare_models as compare
    from medseg.project import result, stage

    with stage("compare_models", target=f"reports/{run}") as root:
        paths = compare(
            root,
            model,
            baseline,
            root.resolve(f"reports/{run}", field="run"),
            split=split,
            model_fold=model_fold,
            baseline_fold=baseline_fold,
            metrics=metrics,
        )
        shutil.copyfile(paths["page"], html.path)
        table.uri = root.address(paths["table"])
        table.metadata["path"] = root.relative(paths["table"])
        result("comparison", paths["page"])
