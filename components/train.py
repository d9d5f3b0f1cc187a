"""Component ``train``."""

from kfp.dsl import Metrics, Output

from medseg.kubeflow import stage_component


@stage_component(
    gpu=True,
    shared_memory=True,
    secrets=("mlflow", "mlflow_artifacts"),
    cpu_request="1",
    memory_request="4Gi",
    time_limit_s=604_800,
)
def train(
    config_file_path: str, metrics: Output[Metrics], fold: int = -1, configuration: str = ""
) -> None:
    """Trains one fold with nnU-Net's own trainer, tracked in MLflow; resumes after a kill.

    A pod that ends loses no more of the training than the config's checkpoint_minutes.

    Args:
        config_file_path: The task's config.
        metrics: Losses and Dice of the last epoch.
        fold: Fold to train; -1: the one that the config names.
        configuration: nnU-Net configuration; empty: the one that the config names, whose folds
            alone go into the bundle.
    """
    from medseg.bundle import export_checkpoint
    from medseg.config import fold_stage
    from medseg.nnunet import train as train_fold
    from medseg.project import result

    with fold_stage("train", config_file_path, fold, configuration) as config:
        for name, value in train_fold(config).measures.items():
            metrics.log_metric(name, value)
        if config.configuration == config.default_configuration:
            export_checkpoint(config)
        metrics.uri = config.root.address(config.fold_folder())
        result("training", config.fold_folder())
