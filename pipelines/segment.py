"""Pipeline ``segment``."""

from medseg import components
from medseg.kubeflow import platform_pipeline


@platform_pipeline(
    name="medseg-segment", display_name="Segment", secrets=("mlflow", "mlflow_artifacts")
)
def segment(
    model: str,
    input: str,  # noqa: A002 - the parameter's name in the UI
    output: str,
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
        output_format: nifti or dicom; default: that of the input.
        test_time_augmentation: Average over mirrored copies of the image, as nnU-Net does.
        tracking_uri: MLflow, for a model of its registry; default: the data root's own store.
        precision: float32, bfloat16, or auto: the fastest that gives the same result.
        probabilities: Write the probability of each label too (CASE_prob_VALUE.nii.gz).
    """
    components.segment(
        model=model,
        input=input,
        output=output,
        output_format=output_format,
        test_time_augmentation=test_time_augmentation,
        tracking_uri=tracking_uri,
        precision=precision,
        probabilities=probabilities,
    )
