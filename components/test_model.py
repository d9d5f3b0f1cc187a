"""Component ``test_model``."""

from kfp.dsl import Metrics, Output

from medseg.kubeflow import stage_component


@stage_component(gpu=True, shared_memory=True, secrets=("mlflow", "mlflow_artifacts"))
def test_model(
    config_file_path: str, metrics: Output[Metrics], fold: int = -1, ensemble: bool = False
) -> None:
    """Segments the held-back test cases with the packaged model and measures the result.

    Args:
        config_file_path: The task's config; its test_cases are the test set.
        metrics: Mean of every measure and class; empty without test cases.
        fold: Fold whose model is tested; -1: the one that the config names.
        ensemble: Test the model of find_best_configuration's choice instead.
    """
    from medseg.config import fold_stage
    from medseg.evaluation import evaluate_test_cases, flat_means, test_folder
    from medseg.project import result

    with fold_stage("test_model", config_file_path, fold) as config:
        summary = evaluate_test_cases(config, ensemble=ensemble)
        for name, value in flat_means(summary).items():
            metrics.log_metric(name, value)
        path = test_folder(config, ensemble=ensemble) / "summary.json"
        metrics.uri = config.root.address(path)
        if summary:
            result("test", path)
