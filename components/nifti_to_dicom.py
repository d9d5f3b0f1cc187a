"""Component ``nifti_to_dicom``."""

from kfp.dsl import Dataset, Output

from medseg.kubeflow import stage_component


@stage_component(secrets=("dicomweb",))
def nifti_to_dicom(
    input_folder: str,
    output: str,
    dicom: Output[Dataset],
    config_file_path: str = "",
    modality: str = "",
    deidentify: bool = False,
) -> None:
    """Writes NIfTI images and labels as DICOM series and DICOM SEG, one study a case.

    Args:
        input_folder: Folder of the NIfTI dataset, in the Decathlon or the subfolders format.
        output: Folder for the DICOM files, or a DICOMweb URL (STOW-RS), or
            dicom://AETITLE@host:port (C-STORE).
        dicom: How many cases the target holds, and were written now.
        config_file_path: The task's config, for label names and modality (optional).
        modality: DICOM modality of the images, such as CT or MR; default: the dataset's own.
        deidentify: Write pseudonyms in place of the case identifiers.
    """
    from medseg.config import load_config
    from medseg.dicom import nifti_to_dicom as write_studies
    from medseg.project import stage

    with stage("nifti_to_dicom", target=output, private=True) as root:
        config = load_config(config_file_path, root) if config_file_path else None
        done = write_studies(
            root, input_folder, output, config=config, modality=modality, deidentify=deidentify
        )
        dicom.metadata.update(done.counts)
        dicom.uri = root.address(output)
