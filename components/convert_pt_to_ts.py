"""Component ``convert_pt_to_ts``."""

from kfp.dsl import Model, Output

from medseg.kubeflow import stage_component


@stage_component()
def convert_pt_to_ts(config_file_path: str, model: Output[Model], fold: int = -1) -> None:
    """Packages the bundle's checkpoint as one TorchScript file with metadata and configuration.

    The traced network is compared with the original on real patches before it is accepted.

    Args:
        config_file_path: The task's config.
        model: Where the model lies, its hash and its validation Dice.
        fold: Fold to package; -1: the one that the config names.
    """
    from medseg.bundle import convert_pt_to_ts as convert
    from medseg.bundle import model_file
    from medseg.config import fold_stage
    from medseg.project import result

    with fold_stage("convert_pt_to_ts", config_file_path, fold) as config:
        model.metadata.update(convert(config))
        model.uri = config.root.address(model_file(config))
        result("packaged model", model_file(config))
