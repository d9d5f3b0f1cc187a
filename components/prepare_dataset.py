"""Component ``prepare_dataset``."""

from kfp.dsl import Dataset, Output

from medseg.kubeflow import stage_component


@stage_component()
def prepare_dataset(config_file_path: str, dataset: Output[Dataset]) -> None:
    """Checks a NIfTI dataset and lays it out as nnU-Net's raw dataset.

    Args:
        config_file_path: The task's config.
        dataset: Cases, channels, labels and the dataset's hash.
    """
    from medseg.config import load_config
    from medseg.nnunet import prepare_dataset as prepare
    from medseg.project import stage

    with stage("prepare_dataset", target=config_file_path) as root:
        config = load_config(config_file_path, root)
        dataset.metadata.update(prepare(config))
        dataset.uri = root.address(config.raw_folder)
