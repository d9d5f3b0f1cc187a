"""Pipeline ``docker_build``."""

from medseg import components
from medseg.kubeflow import load_settings, platform_pipeline


@platform_pipeline(name="medseg-docker-build", display_name="Docker build", secrets=("registry",))
def docker_build(
    context: str,
    destination: str,
    destination_nifti: str,
    segmentation_task_file: str,
    model_file: str,
    task_name: str = "",
    base_dicom: str = load_settings().image("map-dicom"),
    base_nifti: str = load_settings().image("map-nifti"),
    overwrite: bool = False,
    insecure_registry: bool = False,
    builder_image: str = load_settings().image("builder"),  # noqa: ARG001 - for docker_build
) -> None:
    """Makes a model two inference images, for DICOM and for NIfTI, and pushes them.

    Args:
        context: Folder for the build contexts.
        destination: Name of the DICOM image, registry/path:tag.
        destination_nifti: Name of the NIfTI image.
        segmentation_task_file: The segmentation task file.
        model_file: The packaged model (model.ts).
        task_name: Task in the file; may be empty where it holds one.
        base_dicom: Base image of the DICOM variant.
        base_nifti: Base image of the NIfTI variant.
        overwrite: Replace images of these names that differ.
        insecure_registry: The registry speaks plain HTTP or has a certificate of its own.
        builder_image: Image that the stage docker_build runs in.
    """
    written = components.create_docker_context(
        context=context,
        model_file=model_file,
        segmentation_task_file=segmentation_task_file,
        base_dicom=base_dicom,
        base_nifti=base_nifti,
        task_name=task_name,
        destination=destination,
        destination_nifti=destination_nifti,
    )
    # two tasks beside each other, which a cluster runs at the same time
    for variant, name in (("dicom", destination), ("nifti", destination_nifti)):
        components.docker_build(
            context=f"{context}/{variant}",
            destination=name,
            overwrite=overwrite,
            insecure_registry=insecure_registry,
        ).set_display_name(f"docker-build-{variant}").after(written)
