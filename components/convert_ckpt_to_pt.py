"""Component ``convert_ckpt_to_pt``."""

from kfp.dsl import Model, Output

from medseg.kubeflow import stage_component


@stage_component()
def convert_ckpt_to_pt(config_file_path: str, model: Output[Model], fold: int = -1) -> None:
    """Brings a training by Lightning (MAIA's) into nnU-Net's layout and the bundle.

    Reads models/fold_F/*.ckpt of the bundle; the dataset is to be planned and preprocessed, as its
    plans say which network the weights must fit. Afterwards validate, convert_pt_to_ts and
    test_model work as after train.

    Args:
        config_file_path: The task's config.
        model: Where the checkpoint lies, and which files it was made of.
        fold: Fold to convert; -1: the one that the config names.
    """
    from dataclasses import asdict

    from medseg.bundle import convert_ckpt_to_pt as convert
    from medseg.config import fold_stage
    from medseg.project import result

    with fold_stage("convert_ckpt_to_pt", config_file_path, fold) as config:
        converted = convert(config)
        known = {name: value for name, value in asdict(converted).items() if value is not None}
        model.metadata.update(known)
        model.uri = config.root.address(config.root.resolve(converted.model))
        result("checkpoints", config.fold_folder())
