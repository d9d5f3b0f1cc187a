"""Component ``segment``."""

from kfp.dsl import Dataset, Output

from medseg.kubeflow import stage_component


@stage_component(gpu=True, shared_memory=True, secrets=("mlflow", "mlflow_artifacts"))
def segment(
    model: str,
    input: str,  # noqa: A002 - the parameter's name in the UI
    output: str,
    segmentations: Output[Dataset],
    output_format: str = "",
    test_time_augmentation: bool = True,
    tracking_uri: str = "",
    precision: str = "auto",
    probabilities: bool = False,
) -> None:
    """Segments images with a packaged model.

    Args:
        model: The packaged model (model.ts), or one of MLflow's registry: models:/NAME@champion,
            models:/NAME/3.
        input: A NIfTI file, a folder of them, a DICOM series, or a folder of DICOM series.
        output: File or folder for the segmentations.
        segmentations: How many files were written.
        output_format: nifti or dicom; default: that of the input.
        test_time_augmentation: Average over mirrored copies of the image, as nnU-Net does.
        tracking_uri: MLflow, for a model of its registry; default: the data root's own store.
        precision: float32, bfloat16, or auto: the fastest that gives the same result.
        probabilities: Write the probability of each label too (CASE_prob_VALUE.nii.gz).
    """
    from medseg.bundle import segment as segment_images
    from medseg.project import result, stage
    from medseg.tracking import fetch_model, is_registered

    with stage("segment", target=output, private=True) as root:
        registered = is_registered(model)
        paths = segment_images(
            fetch_model(model, tracking_uri) if registered else root.resolve(model, field="model"),
            root.resolve(input, field="input"),
            root.resolve(output, field="output"),
            output_format=output_format,
            test_time_augmentation=test_time_augmentation,
            precision=precision,
            probabilities=probabilities,
        )
        segmentations.uri = root.address(output)
        segmentations.metadata["files"] = len(paths)
        result("segmentations", root.resolve(output))
