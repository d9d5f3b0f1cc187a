"""Component ``validate``."""

from kfp.dsl import Metrics, Output

from medseg.kubeflow import stage_component


@stage_component(gpu=True, shared_memory=True, secrets=("mlflow", "mlflow_artifacts"))
def validate(
    config_file_path: str, metrics: Output[Metrics], fold: int = -1, configuration: str = ""
) -> None:
    """Predicts the fold's validation cases and measures Dice, IoU, ASD and HD95 of each.

    Args:
        config_file_path: The task's config.
        metrics: Mean of every measure and class.
        fold: Fold to validate; -1: the one that the config names.
        configuration: nnU-Net configuration; empty: the one that the config names.
    """
    from medseg.config import fold_stage
    from medseg.evaluation import evaluate, flat_means
    from medseg.nnunet import predict_validation
    from medseg.project import result

    with fold_stage("validate", config_file_path, fold, configuration) as config:
        predict_validation(config)
        for name, value in flat_means(evaluate(config)).items():
            metrics.log_metric(name, value)
        path = config.fold_folder() / "validation" / "summary.json"
        metrics.uri = config.root.address(path)
        result("validation", path)
