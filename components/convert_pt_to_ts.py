"""Component ``convert_pt_to_ts``."""

from kfp.dsl import Model, Output

from medseg.kubeflow import stage_component


@stage_component()
def convert_pt_to_ts(
    config_file_path: str, model: Output[Model], fold: int = -1, ensemble: bool = False
) -> None:
    """Packages the bundle's checkpoint as one TorchScript file with metadata and configuration.

    The traced network is compared with the original on real patches before it is accepted. What
    find_best_configuration has chosen is one file, too, with all of its folds.

    Args:
        config_file_path: The task's config.
        model: Where the model lies, its hash and its validation Dice.
        fold: Fold to package; -1: the one that the config names.
        ensemble: Package what find_best_configuration has chosen instead.
    """
    from medseg.bundle import convert_pt_to_ts as convert
    from medseg.bundle import ensemble_file, model_file, package_ensemble
    from medseg.config import fold_stage
    from medseg.project import result

    with fold_stage("convert_pt_to_ts", config_file_path, fold) as config:
        model.metadata.update(package_ensemble(config) if ensemble else convert(config))
        path = ensemble_file(config) if ensemble else model_file(config)
        model.uri = config.root.address(path)
        result("packaged model", path)
