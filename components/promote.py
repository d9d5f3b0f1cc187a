"""Component ``promote``."""

from kfp.dsl import Markdown, Metrics, Model, Output

from medseg.kubeflow import stage_component


@stage_component(gpu=True, shared_memory=True, secrets=("mlflow", "mlflow_artifacts"))
def promote(
    config_file_path: str,
    metrics: Output[Metrics],
    decision: Output[Markdown],
    model: Output[Model],
    ensemble: bool = False,
) -> None:
    """Makes the packaged model the present one, unless it is worse on the fixed test set.

    Args:
        config_file_path: The task's config; its test_cases are the test set.
        metrics: Mean Dice of both models, and the decision (1: promoted).
        decision: The same as a table, with the reason.
        model: The present model after the decision.
        ensemble: Judge the model of find_best_configuration's choice instead of the fold's.
    """
    from pathlib import Path

    from medseg.bundle import present_model, promotions_file
    from medseg.config import load_config
    from medseg.evaluation import describe_promotion, promotion_measures
    from medseg.evaluation import promote as judge
    from medseg.project import stage

    with stage("promote", target=config_file_path) as root:
        config = load_config(config_file_path, root)
        judgement = judge(config, ensemble=ensemble)
        for name, value in promotion_measures(judgement).items():
            metrics.log_metric(name, value)
        Path(decision.path).write_text(describe_promotion(judgement), encoding="utf-8")
        metrics.uri = root.address(promotions_file(config))
        model.uri = root.address(present_model(config))
        model.metadata["path"] = root.relative(present_model(config))
