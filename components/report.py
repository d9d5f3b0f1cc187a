"""Component ``report``."""

from kfp.dsl import HTML, Output

from medseg.kubeflow import stage_component


@stage_component(secrets=("mlflow", "mlflow_artifacts"))
def report(config_file_path: str, run: str, html: Output[HTML], fold: int = -1) -> None:
    """Writes one HTML file: dataset, training curves, metrics, overlays, versions and hashes.

    Args:
        config_file_path: The task's config.
        run: Name of the report's folder in reports/.
        html: The report.
        fold: Fold to report on; -1: the one that the config names.
    """
    import shutil

    from medseg.config import load_config
    from medseg.evaluation import write_report
    from medseg.project import result, stage

    with stage("report", target=f"reports/{run}") as root:
        path = root.resolve(f"reports/{run}/report.html", field="run")
        write_report(load_config(config_file_path, root, fold=fold), path)
        shutil.copyfile(path, html.path)
        result("report", path)
