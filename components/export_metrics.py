"""Component ``export_metrics``."""

from kfp.dsl import HTML, Dataset, Output

from medseg.kubeflow import stage_component


@stage_component()
def export_metrics(
    config_file_path: str,
    run: str,
    table: Output[Dataset],
    summary: Output[HTML],
    folds: list[int] = [],  # noqa: B006
) -> None:
    """Writes one table of all cases, folds, splits, structures and metrics, as CSV and Parquet.

    Args:
        config_file_path: The task's config.
        run: Name of the folder in reports/.
        table: The table: metrics.parquet, the same as metrics.csv beside it.
        summary: Means with confidence intervals, by split, fold, structure and metric.
        folds: Folds to take; [-1]: the one that the config names; []: all with results.
    """
    import shutil

    from medseg.config import load_config
    from medseg.evaluation import export_metrics as export
    from medseg.project import result, stage

    with stage("export_metrics", target=f"reports/{run}") as root:
        folder = root.resolve(f"reports/{run}", field="run")
        numbers = [int(fold) for fold in folds]  # KFP's lists hold fractions
        paths = export(load_config(config_file_path, root), folder, numbers)
        shutil.copyfile(paths["page"], summary.path)
        table.uri = root.address(paths["table"])
        table.metadata["path"] = root.relative(paths["table"])
        result("metrics", paths["table"])
        result("means", paths["page"])
