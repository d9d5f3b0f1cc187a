"""Component ``create_docker_context``."""

from medseg.kubeflow import stage_component


@stage_component()
def create_docker_context(
    context: str,
    model_file: str,
    segmentation_task_file: str,
    base_dicom: str,
    base_nifti: str,
    task_name: str = "",
    destination: str = "",
    destination_nifti: str = "",
) -> None:
    """Writes the build contexts of the two inference images of a model, for DICOM and for NIfTI.

    The model must load, and the task's segments must be its labels. `docker build` makes the same
    images of the contexts.

    Args:
        context: Folder for the contexts; they become its sub-folders dicom and nifti.
        model_file: The packaged model (model.ts).
        segmentation_task_file: The segmentation task file.
        base_dicom: Base image of the DICOM variant.
        base_nifti: Base image of the NIfTI variant.
        task_name: Task in the file; may be empty where it holds one.
        destination: Name that the DICOM image will get; checked before any work.
        destination_nifti: Name that the NIfTI image will get; checked likewise.
    """
    from medseg.deploy import create_docker_context as create
    from medseg.project import result, stage

    with stage("create_docker_context", target=context) as root:
        create(
            root,
            context,
            model_file,
            segmentation_task_file,
            base_dicom=base_dicom,
            base_nifti=base_nifti,
            task_name=task_name,
            destinations={"destination": destination, "destination_nifti": destination_nifti},
        )
        result("build contexts", root.resolve(context))
