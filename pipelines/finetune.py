"""Pipeline ``finetune``."""

from kfp import dsl

from medseg import components
from medseg.kubeflow import platform_arguments, platform_pipeline
from medseg.pipelines.plan_and_preprocess import plan


@platform_pipeline(name="medseg-finetune-stages", secrets=("mlflow", "mlflow_artifacts"))
def finetune_stages(
    config_file_path: str,
    weights: str,
    epochs: int,
    iterations_per_epoch: int,
    initial_lr: float,
    freeze_encoder: bool,
    new_heads: bool,
    report_name: str,
) -> None:
    """From a model and a NIfTI dataset to a judged model.

    Args:
        config_file_path: The task's config.
        weights: The model; empty: the config's pretrained_weights.
        epochs: Length of the training.
        iterations_per_epoch: Steps of an epoch.
        initial_lr: Learning rate of the first epoch.
        freeze_encoder: Leave the network's encoder as it is.
        new_heads: Allow other labels than the model's.
        report_name: Name of the report's folder in reports/.
    """
    config = components.adopt_model(
        config_file_path=config_file_path,
        weights=weights,
        epochs=epochs,
        iterations_per_epoch=iterations_per_epoch,
        initial_lr=initial_lr,
        freeze_encoder=freeze_encoder,
        new_heads=new_heads,
    ).output
    planned = plan(config)
    trained = components.finetune(config_file_path=config).after(planned)
    validated = components.validate(config_file_path=config).after(trained)
    packaged = components.convert_pt_to_ts(config_file_path=config).after(validated)
    tested = components.test_model(config_file_path=config).after(packaged)
    promoted = components.promote(config_file_path=config).after(tested)
    components.report(config_file_path=config, run=report_name).after(promoted)


@platform_pipeline(
    name="medseg-finetune",
    display_name="Fine-tune",
    secrets=("mlflow", "mlflow_artifacts", "notify"),
)
def finetune(
    config_file_path: str,
    weights: str = "",
    epochs: int = 0,
    iterations_per_epoch: int = 0,
    initial_lr: float = 0.0,
    freeze_encoder: bool = False,
    new_heads: bool = False,
) -> None:
    """Trains on from a model, with its plans: validated, packaged, tested, promoted, reported.

    What is trained from scratch keeps its place; the model to use is replaced unless the new one is
    worse on the held-back test cases.

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
    """
    failed = components.notify(
        pipeline="finetune", run=dsl.PIPELINE_JOB_NAME_PLACEHOLDER, last_stage="report"
    )
    with dsl.ExitHandler(failed, name="stages"):
        finetune_stages(
            config_file_path=config_file_path,
            weights=weights,
            epochs=epochs,
            iterations_per_epoch=iterations_per_epoch,
            initial_lr=initial_lr,
            freeze_encoder=freeze_encoder,
            new_heads=new_heads,
            report_name=dsl.PIPELINE_JOB_NAME_PLACEHOLDER,
            **platform_arguments("mlflow", "mlflow_artifacts"),
        )
