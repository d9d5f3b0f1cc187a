"""Pipeline ``lifecycle``."""

from kfp import dsl
from medseg.pipelines.dicom_to_nifti import dicom_to_nifti
from medseg.pipelines.plan_and_preprocess import plan_and_preprocess

from medseg import components
from medseg.kubeflow.platform import platform_arguments, platform_pipeline


@platform_pipeline(
    name="medseg-lifecycle",
    display_name="Lifecycle",
    secrets=("dicomweb", "mlflow", "s3"),
    gpu="train, validate, test_model",
)
def lifecycle(studies: str, config_file_path: str, shards: int = 1, deidentify: bool = False):
    """From DICOM to a packaged, validated model and its report.

    Args:
        studies: DICOMweb URL (http(s)://…/dicom-web) or file:///folder on the data root.
        config_file_path: The task's config; its test_cases are held back as the test set.
        shards: Parts that are converted at the same time.
        deidentify: Name the cases by pseudonyms in place of patient identifiers.
    """
    converted = dicom_to_nifti(
        studies=studies,
        output_folder="",
        config_file_path=config_file_path,
        shards=shards,
        deidentify=deidentify,
        **platform_arguments("dicomweb"),
    )
    planned = plan_and_preprocess(config_file_path=config_file_path, **platform_arguments()).after(
        converted
    )
    trained = components.train(config_file_path=config_file_path).after(planned)
    validated = components.validate(config_file_path=config_file_path).after(trained)
    packaged = components.convert_pt_to_ts(config_file_path=config_file_path).after(validated)
    tested = components.test_model(config_file_path=config_file_path).after(packaged)
    components.report(
        config_file_path=config_file_path, run=dsl.PIPELINE_JOB_NAME_PLACEHOLDER
    ).after(tested)
