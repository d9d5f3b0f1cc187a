"""Pipeline ``cross_validate``."""

from kfp import dsl

from medseg import components
from medseg.kubeflow import platform_arguments, platform_pipeline


@platform_pipeline(name="medseg-cross-validate-fold", secrets=("mlflow", "mlflow_artifacts"))
def cross_validate_fold(config_file_path: str, configuration: str, fold: int) -> None:
    """Trains and validates one fold.

    Args:
        config_file_path: The task's config.
        configuration: nnU-Net configuration.
        fold: Fold to train.
    """
    trained = components.train(
        config_file_path=config_file_path, fold=fold, configuration=configuration
    )
    components.validate(
        config_file_path=config_file_path, fold=fold, configuration=configuration
    ).after(trained)


@platform_pipeline(
    name="medseg-cross-validate-configuration", secrets=("mlflow", "mlflow_artifacts")
)
def cross_validate_configuration(
    config_file_path: str, configuration: str, folds: list[int]
) -> None:
    """Trains and validates the folds of one configuration at the same time.

    Args:
        config_file_path: The task's config.
        configuration: nnU-Net configuration.
        folds: Folds to train.
    """
    with dsl.ParallelFor(folds, name="fold") as fold:
        cross_validate_fold(
            config_file_path=config_file_path,
            configuration=configuration,
            fold=fold,
            **platform_arguments("mlflow", "mlflow_artifacts"),
        )


# a pipeline of its own, as KFP's local runner loops over inputs, or an output called Output
@platform_pipeline(
    name="medseg-cross-validate-configurations", secrets=("mlflow", "mlflow_artifacts")
)
def cross_validate_configurations(
    config_file_path: str, configurations: list[str], folds: list[int]
) -> None:
    """Trains and validates several configurations at the same time.

    Args:
        config_file_path: The task's config.
        configurations: nnU-Net configurations; may be none.
        folds: Folds of each.
    """
    with dsl.ParallelFor(configurations, name="configuration") as configuration:
        cross_validate_configuration(
            config_file_path=config_file_path,
            configuration=configuration,
            folds=folds,
            **platform_arguments("mlflow", "mlflow_artifacts"),
        )


@platform_pipeline(name="medseg-cross-validate-stages", secrets=("mlflow", "mlflow_artifacts"))
def cross_validate_stages(
    config_file_path: str, folds: list[int], configurations: list[str], report_name: str
) -> None:
    """All stages from the NIfTI dataset to the report.

    Args:
        config_file_path: The task's config.
        folds: Folds of each configuration.
        configurations: nnU-Net configurations.
        report_name: Name of the report's folder in reports/.
    """
    prepared = components.prepare_dataset(config_file_path=config_file_path)
    planned = components.plan_configurations(
        config_file_path=config_file_path, configurations=configurations
    ).after(prepared)
    laid_out = components.prepare_bundle(config_file_path=config_file_path).after(planned)
    first = (
        cross_validate_configurations(
            config_file_path=config_file_path,
            configurations=planned.outputs["first"],
            folds=folds,
            **platform_arguments("mlflow", "mlflow_artifacts"),
        )
        .after(laid_out)
        .set_display_name("configurations")
    )
    # cascades, which need the predictions of all folds of their first stages
    second = (
        cross_validate_configurations(
            config_file_path=config_file_path,
            configurations=planned.outputs["second"],
            folds=folds,
            **platform_arguments("mlflow", "mlflow_artifacts"),
        )
        .after(first)
        .set_display_name("cascades")
    )
    chosen = components.find_best_configuration(
        config_file_path=config_file_path, configurations=configurations, folds=folds
    ).after(second)
    packaged = components.convert_pt_to_ts(config_file_path=config_file_path, ensemble=True).after(
        chosen
    )
    tested = components.test_model(config_file_path=config_file_path, ensemble=True).after(packaged)
    promoted = components.promote(config_file_path=config_file_path, ensemble=True).after(tested)
    components.report(config_file_path=config_file_path, run=report_name).after(promoted)


@platform_pipeline(
    name="medseg-cross-validate",
    display_name="Cross-validate",
    secrets=("mlflow", "mlflow_artifacts", "notify"),
)
def cross_validate(
    config_file_path: str,
    folds: list[int] = [0, 1, 2, 3, 4],  # noqa: B006
    configurations: list[str] = [""],  # noqa: B006
) -> None:
    """Trains all folds, chooses the best configuration or pair, and packages it as one model.

    The folds of a configuration train at the same time. Their networks vote, in one model.ts, which
    is tested on the held-back cases and promoted unless it is worse than the present model. What is
    finished is not repeated.

    Args:
        config_file_path: The task's config; its test_cases are held back as the test set.
        folds: Folds to train.
        configurations: nnU-Net configurations to compare; [""]: the one that the config names; a
            cascade brings its first stage with it.
    """
    failed = components.notify(
        pipeline="cross_validate",
        run=dsl.PIPELINE_JOB_NAME_PLACEHOLDER,
        last_stage="report",
        folds=folds,
    )
    with dsl.ExitHandler(failed, name="stages"):
        cross_validate_stages(
            config_file_path=config_file_path,
            folds=folds,
            configurations=configurations,
            report_name=dsl.PIPELINE_JOB_NAME_PLACEHOLDER,
            **platform_arguments("mlflow", "mlflow_artifacts"),
        )
