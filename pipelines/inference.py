"""Pipeline ``inference``."""

from medseg import components
from medseg.kubeflow import platform_pipeline


@platform_pipeline(name="medseg-inference", display_name="Inference")
def inference(input_folder_path: str, output_folder_path: str, image: str) -> None:
    """Runs an inference image on a folder of the volume.

    Args:
        input_folder_path: One case, or one folder a case: DICOM studies or NIfTI files.
        output_folder_path: Folder for the results.
        image: An image of docker_build.
    """
    components.inference(
        image=image,
        input_folder_path=input_folder_path,
        output_folder_path=output_folder_path,
    )
