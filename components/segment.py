"""Component ``segment``."""

from kfp.dsl import Dataset, Output

from medseg.kubeflow import stage_component


@stage_component(gpu=True, shared_memory=True)
def segment(
    model: str,
    input: str,  # noqa: A002 - the parameter's name in the UI
    output: str,
    segmentations: Output[Dataset],
    output_format: str = "",
    test_time_augmentation: bool = True,
) -> None:
    """Segments images with a packaged model.

    Args:
        model: The packaged model (model.ts).
        input: A NIfTI file, a folder of them, a DICOM series, or a folder of DICOM series.
        output: File or folder for the segmentations.
        segmentations: How many files were written.
        output_format: nifti or dicom; default: that of the input.
        test_time_augmentation: Average over mirrored copies of the image, as nnU-Net does.
    """
    from medseg.bundle import segment as segment_images
    from medseg.project import result, stage

    with stage("segment", target=output, private=True) as root:
        paths = segment_images(
            root.resolve(model, field="model"),
            root.resolve(input, field="input"),
            root.resolve(output, field="output"),
            output_format=output_format,
            test_time_augmentation=test_time_augmentation,
        )
        segmentations.uri = root.address(output)
        segmentations.metadata["files"] = len(paths)
        result("segmentations", root.resolve(output))
