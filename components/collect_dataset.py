"""Component ``collect_dataset``."""

from kfp.dsl import HTML, Dataset, Output

from medseg.kubeflow import stage_component


@stage_component()
def collect_dataset(
    dataset: Output[Dataset],
    quality: Output[HTML],
    output_folder: str = "",
    config_file_path: str = "",
) -> None:
    """Writes the dataset's manifest and the table that shows each case's quality.

    Args:
        dataset: Channels, labels, and how many cases there are, with and without label.
        quality: Table of all cases: size, spacing, orientation, intensities, volumes, warnings.
        output_folder: Folder of the NIfTI dataset; default: the config's data_dir.
        config_file_path: The task's config (optional where output_folder is given).
    """
    from pathlib import Path

    from medseg.config import load_config
    from medseg.dataset import collect_dataset as collect
    from medseg.dataset import dataset_folder
    from medseg.project import stage

    with stage("collect_dataset", target=output_folder or config_file_path, private=True) as root:
        config = load_config(config_file_path, root) if config_file_path else None
        summary = collect(root, output_folder, config=config)
        Path(quality.path).write_text(summary.pop("html"), encoding="utf-8")
        dataset.metadata.update(summary["metadata"])
        dataset.uri = root.address(dataset_folder(root, output_folder, config))
