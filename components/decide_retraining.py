"""Component ``decide_retraining``."""

from kfp.dsl import Metrics, Output

from medseg.kubeflow import stage_component


@stage_component()
def decide_retraining(
    config_file_path: str, numbers: Output[Metrics], min_new_cases: int = 1
) -> list[str]:
    """Decides whether enough new cases came in since the last model to train again.

    Args:
        config_file_path: The task's config.
        numbers: New, known and needed cases, and the decision (1: train).
        min_new_cases: New training cases that it takes; 0 trains always.

    Returns:
        The config to train, or nothing: what a loop over it then does once, or not at all.
    """
    from medseg.config import load_config
    from medseg.evaluation import decide_retraining as decide
    from medseg.project import stage

    with stage("decide_retraining", target=config_file_path) as root:
        config = load_config(config_file_path, root)
        decision = decide(config, min_new_cases)
        for name in ("new_cases", "known_cases", "min_new_cases", "retrain"):
            numbers.log_metric(name, int(decision[name]))
        numbers.metadata["reason"] = decision["reason"]
        numbers.uri = root.address(config.data_folder)
        return [config_file_path] if decision["retrain"] else []
