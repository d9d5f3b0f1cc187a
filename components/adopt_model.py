"""Component ``adopt_model``."""

from medseg.kubeflow import stage_component


@stage_component()
def adopt_model(
    config_file_path: str,
    weights: str = "",
    epochs: int = 0,
    iterations_per_epoch: int = 0,
    initial_lr: float = 0.0,
    freeze_encoder: bool = False,
    new_heads: bool = False,
) -> str:
    """Checks that a model fits the task, and writes the config of a training that starts from it.

    The config is written beside the task's, as NAME_finetune.yaml; plan_and_preprocess takes the
    model's plans with it, and all that follows finds what was trained.

    Args:
        config_file_path: The task's config.
        weights: A model.ts, a bundle's .pt, nnU-Net's .pth or a Lightning .ckpt; default: the
            config's pretrained_weights.
        epochs: Length of the training and of its learning-rate schedule; 0: what the config says
            beside pretrained_weights, else 50.
        iterations_per_epoch: Steps of an epoch; 0: what the config says.
        initial_lr: Learning rate of the first epoch; 0: what the config says beside
            pretrained_weights, else 0.001.
        freeze_encoder: Leave the network's encoder as it is.
        new_heads: Allow other labels than the model's; those that it lacks are learnt anew.

    Returns:
        The config of the training.
    """
    from medseg.config import finetuning_config, load_config
    from medseg.nnunet import read_pretrained
    from medseg.project import result, stage

    with stage("adopt_model", target=config_file_path) as root:
        config = finetuning_config(
            load_config(config_file_path, root),
            weights=weights,
            epochs=epochs,
            iterations_per_epoch=iterations_per_epoch,
            initial_lr=initial_lr,
            freeze_encoder=freeze_encoder,
            new_heads=new_heads,
        )
        read_pretrained(config)  # refuses a model that does not fit, before any work
        result("config", config.path)
        return root.relative(config.path)
