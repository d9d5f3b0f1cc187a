"""Pipeline ``lifecycle``."""

from kfp import dsl
from medseg.pipelines.dicom_to_nifti import dicom_to_nifti
from medseg.pipelines.plan_and_preprocess import plan_and_preprocess

from medseg import components
from medseg.kubeflow.platform import platform_arguments, platform_pipeline


@platform_pipeline(
    name="medseg-lifecycle-stages",
    secrets=("dicomweb", "mlflow", "s3"),
    gpu="train, validate, test_model",
)
def lifecycle_stages(
    studies: str, config_file_path: str, shards: int, deidentify: bool, report_name: str
):
    """All stages from DICOM to the report.

    Args:
        studies: DICOMweb URL or file:///folder.
        config_file_path: The task's config.
        shards: Parts that are converted at the same time.
        deidentify: Name the cases by pseudonyms.
        report_name: Name of the report's folder in reports/.
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
    components.report(config_file_path=config_file_path, run=report_name).after(tested)


@platform_pipeline(
    name="medseg-lifecycle",
    display_name="Lifecycle",
    secrets=("dicomweb", "mlflow", "s3", "notify"),
    gpu="train, validate, test_model",
)
def lifecycle(studies: str, config_file_path: str, shards: int = 1, deidentify: bool = False):
    """From DICOM to a packaged, validated model and its report.

    Args:
        studies: DICOMweb URL (http(s)://…/dicom-web) or file:///mnt/Data/folder.
        config_file_path: The task's config; its test_cases are held back as the test set.
        shards: Parts that are converted at the same time.
        deidentify: Name the cases by pseudonyms in place of patient identifiers.
    """
    failed = components.notify(
        pipeline="lifecycle", run=dsl.PIPELINE_JOB_NAME_PLACEHOLDER, last_stage="report"
    )
    with dsl.ExitHandler(failed):
        lifecycle_stages(
            studies=studies,
            config_file_path=config_file_path,
            shards=shards,
            deidentify=deidentify,
            report_name=dsl.PIPELINE_JOB_NAME_PLACEHOLDER,
            **platform_arguments("dicomweb", "mlflow", "s3"),
        )
