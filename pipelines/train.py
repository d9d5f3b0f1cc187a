"""Pipeline ``train``."""

from kfp import dsl

from medseg import components
from medseg.kubeflow import platform_arguments, platform_pipeline


@platform_pipeline(name="medseg-train-fold", secrets=("mlflow", "mlflow_artifacts"))
def train_fold(config_file_path: str, fold: int) -> None:
    """Trains one fold.

    Args:
        config_file_path: The task's config.
        fold: Fold to train; -1: the one that the config names.
    """
    components.train(config_file_path=config_file_path, fold=fold)


@platform_pipeline(name="medseg-train-folds", secrets=("mlflow", "mlflow_artifacts"))
def train_folds(config_file_path: str, folds: list[int]) -> None:
    """Trains several folds at the same time.

    Args:
        config_file_path: The task's config.
        folds: Folds to train; -1: the one that the config names.
    """
    with dsl.ParallelFor(folds, name="fold") as fold:
        train_fold(
            config_file_path=config_file_path,
            fold=fold,
            **platform_arguments("mlflow", "mlflow_artifacts"),
        )


@platform_pipeline(
    name="medseg-train", display_name="Train", secrets=("mlflow", "mlflow_artifacts", "notify")
)
def train(config_file_path: str, folds: list[int] = [-1]) -> None:  # noqa: B006
    """Trains nnU-Net, one fold or several at the same time, tracked in MLflow.

    Args:
        config_file_path: The task's config.
        folds: Folds to train; [-1]: the one that the config names; [0, 1, 2, 3, 4]: all five.
    """
    failed = components.notify(
        pipeline="train",
        run=dsl.PIPELINE_JOB_NAME_PLACEHOLDER,
        last_stage="train",
        folds=folds,
    )
    # a pipeline of its own, as KFP's compiler up to 2.14 loses the list of a loop that stands
    # directly in the handler (kubeflow/pipelines#12390)
    with dsl.ExitHandler(failed, name="folds"):
        train_folds(
            config_file_path=config_file_path,
            folds=folds,
            **platform_arguments("mlflow", "mlflow_artifacts"),
        )
