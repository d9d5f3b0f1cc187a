"""Component ``plan_configurations``."""

from typing import NamedTuple

from medseg.kubeflow import stage_component


@stage_component(shared_memory=True, cpu_request="1", memory_request="4Gi")
def plan_configurations(
    config_file_path: str,
    configurations: list[str] = [""],  # noqa: B006
) -> NamedTuple("Order", [("first", list[str]), ("second", list[str])]):  # type: ignore[valid-type]
    """Plans and preprocesses several configurations, and says in which order to train them.

    Args:
        config_file_path: The task's config; its dataset is prepared.
        configurations: nnU-Net configurations of its plans; empty: the one that the config names.

    Attributes:
        first: Configurations that need no other, with the first stages of cascades.
        second: Cascades, which need the predictions of these.
    """
    from collections import namedtuple

    from medseg.config import load_config
    from medseg.nnunet import plan_configurations as plan
    from medseg.project import result, stage

    with stage("plan_configurations", target=config_file_path) as root:
        config = load_config(config_file_path, root)
        first, second = plan(config, configurations)
        result("preprocessed", config.preprocessed_folder)
        Order = namedtuple("Order", ["first", "second"])
        return Order(first, second)
