"""Pipeline ``dicom_to_nifti``."""

from kfp import dsl
from kfp.dsl.pipeline_task import PipelineTask

from medseg import components
from medseg.kubeflow import platform_arguments, platform_pipeline


@platform_pipeline(name="medseg-convert-shard", secrets=("dicomweb",))
def convert_shard(
    studies: str,
    shard: int,
    output_folder: str,
    config_file_path: str,
    deidentify: bool,
    max_failed_cases: int = -1,
) -> None:
    """Converts one shard of the studies.

    Args:
        studies: DICOMweb URL or file:///folder.
        shard: Number of the shard.
        output_folder: Folder of the NIfTI dataset.
        config_file_path: The task's config.
        deidentify: Name the cases by pseudonyms.
        max_failed_cases: How many cases may fail; -1: what the config says, else none.
    """
    components.convert_studies(
        studies=studies,
        shard=shard,
        output_folder=output_folder,
        config_file_path=config_file_path,
        deidentify=deidentify,
        max_failed_cases=max_failed_cases,
    )


def convert(
    studies: str,
    output_folder: str,
    config_file_path: str,
    shards: int,
    deidentify: bool,
    max_failed_cases: int,
) -> PipelineTask:
    """Adds the stages to the pipeline under construction; returns the last one.

    Args:
        studies: DICOMweb URL or file:///folder.
        output_folder: Folder of the NIfTI dataset.
        config_file_path: The task's config.
        shards: Parts that are converted at the same time.
        deidentify: Name the cases by pseudonyms.
        max_failed_cases: How many cases may fail; -1: what the config says, else none.
    """
    listed = components.list_studies(
        studies=studies,
        output_folder=output_folder,
        config_file_path=config_file_path,
        shards=shards,
    )
    with dsl.ParallelFor(listed.output, name="convert") as shard:
        converted = convert_shard(
            studies=studies,
            shard=shard,
            output_folder=output_folder,
            config_file_path=config_file_path,
            deidentify=deidentify,
            max_failed_cases=max_failed_cases,
            **platform_arguments("dicomweb"),
        )
    return components.collect_dataset(
        output_folder=output_folder, config_file_path=config_file_path
    ).after(converted)


@platform_pipeline(
    name="medseg-dicom-to-nifti", display_name="DICOM to NIfTI", secrets=("dicomweb",)
)
def dicom_to_nifti(
    studies: str,
    output_folder: str = "",
    config_file_path: str = "",
    shards: int = 1,
    deidentify: bool = False,
    max_failed_cases: int = -1,
) -> None:
    """Turns DICOM series and DICOM SEG into a NIfTI dataset, with a table of its quality.

    Args:
        studies: DICOMweb URL (http(s)://…/dicom-web) or file:///mnt/Data/folder.
        output_folder: Folder of the NIfTI dataset; default: the config's data_dir.
        config_file_path: The task's config, for label values and file suffixes (optional where
            output_folder is given).
        shards: Parts that are converted at the same time.
        deidentify: Name the cases by pseudonyms in place of patient identifiers, files by numbers.
        max_failed_cases: How many cases may fail without failing the run; -1: what the config says,
            else none.
    """
    convert(studies, output_folder, config_file_path, shards, deidentify, max_failed_cases)
