"""Component ``plan_and_preprocess``."""

from kfp.dsl import Dataset, Output

from medseg.kubeflow import stage_component


@stage_component(shared_memory=True, cpu_request="1", memory_request="4Gi")
def plan_and_preprocess(config_file_path: str, preprocessed: Output[Dataset]) -> None:
    """Lets nnU-Net take the dataset's fingerprint, plan the training and preprocess the cases.

    Args:
        config_file_path: The task's config.
        preprocessed: The plan's facts: patch size, batch size, spacing, normalisation.
    """
    from dataclasses import asdict

    from medseg.config import load_config
    from medseg.nnunet import plan_and_preprocess as preprocess
    from medseg.project import result, stage

    with stage("plan_and_preprocess", target=config_file_path) as root:
        made = preprocess(load_config(config_file_path, root))
        preprocessed.metadata.update(asdict(made))
        preprocessed.uri = root.address(made.preprocessed_folder)
        result("preprocessed", root.resolve(made.preprocessed_folder))
