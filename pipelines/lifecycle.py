"""Pipeline ``lifecycle``."""

from kfp import dsl

from medseg import components
from medseg.kubeflow import platform_arguments, platform_pipeline
from medseg.pipelines.dicom_to_nifti import convert
from medseg.pipelines.plan_and_preprocess import plan


@platform_pipeline(
    name="medseg-retrain",
    secrets=("mlflow", "mlflow_artifacts"),
)
def retrain(config_file_path: str) -> None:
    """From the NIfTI dataset to a judged model.

    Args:
        config_file_path: The task's config.
    """
    planned = plan(config_file_path)
    trained = components.train(config_file_path=config_file_path).after(planned)
    validated = components.validate(config_file_path=config_file_path).after(trained)
    packaged = components.convert_pt_to_ts(config_file_path=config_file_path).after(validated)
    tested = components.test_model(config_file_path=config_file_path).after(packaged)
    components.promote(config_file_path=config_file_path).after(tested)


@platform_pipeline(
    name="medseg-lifecycle-stages",
    secrets=("dicomweb", "mlflow", "mlflow_artifacts"),
)
def lifecycle_stages(
    studies: str,
    config_file_path: str,
    shards: int,
    deidentify: bool,
    max_failed_cases: int,
    min_new_cases: int,
    report_name: str,
) -> None:
    """All stages from DICOM to the report.

    Args:
        studies: DICOMweb URL or file:///folder.
        config_file_path: The task's config.
        shards: Parts that are converted at the same time.
        deidentify: Name the cases by pseudonyms.
        max_failed_cases: How many cases may fail; -1: what the config says.
        min_new_cases: New training cases that it takes to train again.
        report_name: Name of the report's folder in reports/.
    """
    converted = convert(studies, "", config_file_path, shards, deidentify, max_failed_cases)
    decided = components.decide_retraining(
        config_file_path=config_file_path, min_new_cases=min_new_cases
    ).after(converted)
    # a loop over one config or none, since KFP cannot mount a claim by parameter inside dsl.If
    with dsl.ParallelFor(decided.outputs["Output"], name="retrain") as config:
        retrained = retrain(
            config_file_path=config, **platform_arguments("mlflow", "mlflow_artifacts")
        )
    components.report(config_file_path=config_file_path, run=report_name).after(retrained)


@platform_pipeline(
    name="medseg-lifecycle",
    display_name="Lifecycle",
    secrets=("dicomweb", "mlflow", "mlflow_artifacts", "notify"),
)
def lifecycle(
    config_file_path: str,
    studies: str = "",
    shards: int = 1,
    deidentify: bool = False,
    min_new_cases: int = 1,
    max_failed_cases: int = -1,
) -> None:
    """From DICOM, or a NIfTI dataset, to a packaged, validated model and its report.

    As a recurring run it converts new studies only, trains again when enough new cases came in,
    and promotes the new model unless it is worse on the held-back test cases.

    Args:
        config_file_path: The task's config; its test_cases are held back as the test set.
        studies: DICOMweb URL (http(s)://…/dicom-web) or file:///mnt/Data/folder; empty: the
            config's data_dir is NIfTI already, as after download_decathlon.
        shards: Parts that are converted at the same time.
        deidentify: Name the cases by pseudonyms in place of patient identifiers.
        min_new_cases: New training cases that it takes to train again; 0 trains always.
        max_failed_cases: How many studies may fail to convert without failing the run; -1: what the
            config says.
    """
    failed = components.notify(
        pipeline="lifecycle", run=dsl.PIPELINE_JOB_NAME_PLACEHOLDER, last_stage="report"
    )
    with dsl.ExitHandler(failed, name="stages"):
        lifecycle_stages(
            studies=studies,
            config_file_path=config_file_path,
            shards=shards,
            deidentify=deidentify,
            max_failed_cases=max_failed_cases,
            min_new_cases=min_new_cases,
            report_name=dsl.PIPELINE_JOB_NAME_PLACEHOLDER,
            **platform_arguments("dicomweb", "mlflow", "mlflow_artifacts"),
        )
