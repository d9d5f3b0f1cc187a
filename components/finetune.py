"""Component ``finetune``."""

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
def finetune(
    config_file_path: str,
    metrics: Output[Metrics],
    weights: str = "",
    epochs: int = 0,
    iterations_per_epoch: int = 0,
    initial_lr: float = 0.0,
    freeze_encoder: bool = False,
    new_heads: bool = False,
    fold: int = -1,
) -> str:
    """Trains one fold from the weights of a model, with its plans; resumes after a kill.

    The dataset is prepared; it is preprocessed with the model's plans unless it is already. Folds
    and cases have places of their own beside those of a training from scratch.

    Args:
        config_file_path: The task's config, or one that adopt_model has written.
        metrics: Losses and Dice of the last epoch.
        weights: A model.ts, a bundle's .pt, nnU-Net's .pth or a Lightning .ckpt; default: the
            config's pretrained_weights.
        epochs: Length of the training and of its learning-rate schedule; 0: what the config says
            beside pretrained_weights, else 50.
        iterations_per_epoch: Steps of an epoch; 0: what the config says.
        initial_lr: Learning rate of the first epoch; 0: what the config says beside
            pretrained_weights, else 0.001.
        freeze_encoder: Leave the network's encoder as it is.
        new_heads: Allow other labels than the model's; those that it lacks are learnt anew.
        fold: Fold to train; -1: the one that the config names.

    Returns:
        The config of the training, which validate and the stages after it take.
    """
    from medseg.bundle import export_checkpoint
    from medseg.config import finetuning_config, fold_stage
    from medseg.nnunet import plan_and_preprocess, train
    from medseg.project import result

    with fold_stage("finetune", config_file_path, fold) as task:
        config = finetuning_config(
            task,
            weights=weights,
            epochs=epochs,
            iterations_per_epoch=iterations_per_epoch,
            initial_lr=initial_lr,
            freeze_encoder=freeze_encoder,
            new_heads=new_heads,
        )
        plan_and_preprocess(config)
        for name, value in train(config).measures.items():
            metrics.log_metric(name, value)
        export_checkpoint(config)
        metrics.uri = config.root.address(config.fold_folder())
        result("training", config.fold_folder())
        return config.root.relative(config.path)
