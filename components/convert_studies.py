"""Component ``convert_studies``."""

from kfp.dsl import Dataset, Output

from medseg.kubeflow import stage_component


@stage_component(secrets=("dicomweb",))
def convert_studies(
    studies: str,
    shard: int,
    nifti: Output[Dataset],
    output_folder: str = "",
    config_file_path: str = "",
    deidentify: bool = False,
    max_failed_cases: int = -1,
) -> None:
    """Converts the studies of one shard: image series and DICOM SEG to NIfTI image and label.

    Args:
        studies: DICOMweb URL (http(s)://…/dicom-web) or file:///mnt/Data/folder.
        shard: Number of the shard (see list_studies).
        nifti: How many cases are done, were converted now, were skipped.
        output_folder: Folder of the NIfTI dataset; default: the config's data_dir.
        config_file_path: The task's config, for label values and file suffixes (optional where
            output_folder is given).
        deidentify: Name the cases by pseudonyms in place of patient identifiers, files by numbers.
        max_failed_cases: How many cases may fail without failing the run; -1: what the config says,
            else none.
    """
    from medseg.config import load_config
    from medseg.dataset import dataset_folder
    from medseg.dicom import convert_studies as convert_shard
    from medseg.project import stage

    with stage(
        "convert_studies", target=f"{output_folder or config_file_path}-{shard}", private=True
    ) as root:
        config = load_config(config_file_path, root) if config_file_path else None
        done = convert_shard(
            root,
            studies,
            shard,
            output_folder,
            config=config,
            deidentify=deidentify,
            max_failed_cases=None if max_failed_cases < 0 else max_failed_cases,
        )
        nifti.metadata.update(done.counts)
        nifti.uri = root.address(dataset_folder(root, output_folder, config))
