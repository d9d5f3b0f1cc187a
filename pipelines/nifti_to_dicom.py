"""Pipeline ``nifti_to_dicom``."""

from medseg import components
from medseg.kubeflow import platform_pipeline


@platform_pipeline(
    name="medseg-nifti-to-dicom", display_name="NIfTI to DICOM", secrets=("dicomweb",)
)
def nifti_to_dicom(
    input_folder: str,
    output: str,
    config_file_path: str = "",
    modality: str = "",
    deidentify: bool = False,
) -> None:
    """Writes a NIfTI dataset as DICOM series and DICOM SEG, into a folder or a PACS.

    Args:
        input_folder: Folder of the NIfTI dataset, in the Decathlon or the subfolders format.
        output: Folder, DICOMweb URL, or dicom://AETITLE@host:port.
        config_file_path: The task's config, for label names and modality (optional).
        modality: DICOM modality of the images, such as CT or MR; default: the dataset's own.
        deidentify: Write pseudonyms in place of the case identifiers.
    """
    components.nifti_to_dicom(
        input_folder=input_folder,
        output=output,
        config_file_path=config_file_path,
        modality=modality,
        deidentify=deidentify,
    )
