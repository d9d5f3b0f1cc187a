"""Component ``find_best_configuration``."""

from kfp.dsl import HTML, Metrics, Output

from medseg.kubeflow import stage_component


@stage_component(gpu=True, shared_memory=True)
def find_best_configuration(
    config_file_path: str,
    metrics: Output[Metrics],
    candidates: Output[HTML],
    configurations: list[str] = [""],  # noqa: B006
    folds: list[int] = [0, 1, 2, 3, 4],  # noqa: B006
) -> str:
    """Compares trained configurations, and pairs that vote, on the cross-validation.

    nnU-Net's rule: the highest mean Dice wins, and components other than the largest are taken out
    where that raises it. convert_pt_to_ts, test_model and promote take the result with ensemble.

    Args:
        config_file_path: The task's config.
        metrics: Mean Dice of each candidate, and of the chosen one after its post-processing.
        candidates: The same as a table, with the Dice of each structure.
        configurations: Configurations of the plans; empty: the one that the config names.
        folds: Folds that each configuration has, trained and validated.

    Returns:
        The chosen configurations, and with how many folds, in words.
    """
    from pathlib import Path

    from medseg.config import load_config
    from medseg.evaluation import candidates_page, choice_measures
    from medseg.evaluation import find_best_configuration as find
    from medseg.project import result, stage

    with stage("find_best_configuration", target=config_file_path) as root:
        config = load_config(config_file_path, root)
        numbers = [int(fold) for fold in folds]  # KFP's lists hold fractions
        choice, path = find(config, configurations, numbers)
        for name, value in choice_measures(choice).items():
            metrics.log_metric(name, value)
        metrics.uri = root.address(path)
        Path(candidates.path).write_text(candidates_page(config, choice), encoding="utf-8")
        result("best configuration", path)
        return f"{' and '.join(choice.configurations)}, {len(choice.folds)} folds"
