"""Component ``inference``."""

from kfp import dsl

from medseg.kubeflow import Needs, stage_container


@stage_container(Needs(gpu=True, shared_memory=True))
def inference(image: str, input_folder_path: str, output_folder_path: str) -> dsl.ContainerSpec:
    """Runs an inference image on a folder of the volume.

    Args:
        image: An image of docker_build.
        input_folder_path: One case, or one folder a case: DICOM studies or NIfTI files.
        output_folder_path: Folder for the results.
    """
    return dsl.ContainerSpec(
        image=str(image),
        command=["python3", "/opt/holoscan/app", "stage"],
        args=[input_folder_path, output_folder_path],
    )
