"""A trained fold that predicts preprocessed cases, as nnU-Net's validation has it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medseg.config import TaskConfig
from medseg.nnunet.checkpoints import Checkpoint
from medseg.nnunet.console import quiet
from medseg.nnunet.devices import (
    choose_device,
    choose_precision,
    use_bfloat16,
)
from medseg.nnunet.plans import read_plans, settings_of
from medseg.nnunet.precision import bfloat16_dice
from medseg.nnunet.prediction import CasePredictor
from medseg.nnunet.preprocessing import example_patches
from medseg.nnunet.previous_stage import one_hot, previous_folder
from medseg.nnunet.resume import require_final
from medseg.nnunet.trainer_classes import find_trainer_class


@dataclass(frozen=True)
class FoldNetwork:
    """A fold's final network, and what it predicts.

    Attributes:
        predictor: The network, with nnU-Net's steps around it.
        plans: nnU-Net's ``PlansManager`` of its training.
        configuration: Its ``ConfigurationManager``.
        dataset_json: nnU-Net's ``dataset.json``.
        cases: The folder of the preprocessed cases.
        previous: Of a cascade: the folder of the first stage's predictions.
    """

    predictor: CasePredictor
    plans: Any
    configuration: Any
    dataset_json: dict[str, Any]
    cases: Path
    previous: Path | None

    @classmethod
    def open(cls, config: TaskConfig) -> FoldNetwork:
        """Loads the final checkpoint of the config's fold.

        Args:
            config: The task's config.

        Raises:
            UserError: The fold's training is not finished, or its checkpoint is damaged.
        """
        network, header = load_fold(config)
        _, dataset = read_plans(config)
        plans = header["init_args"]["plans"]
        manager = _manager(plans)
        configuration = manager.get_configuration(config.configuration)
        device = choose_device(config.device).type

        def dice() -> float:
            regions = manager.get_label_manager(dataset).has_regions
            return bfloat16_dice(network, fold_patches(config, plans), regions=regions)

        precision = choose_precision(config.precision, device, dice)
        if (device, precision) == ("cpu", "bfloat16"):
            use_bfloat16(network)  # the same arithmetic, in the order of memory that training has
            precision = "float32"
        predictor = CasePredictor(
            [network],
            plans,
            dataset,
            configuration=config.configuration,
            mirror_axes=header["inference_allowed_mirroring_axes"] or (),
            device=device,
            precision=precision,
        )
        return cls(
            predictor,
            manager,
            configuration,
            dataset,
            config.preprocessed_folder / configuration.data_identifier,
            previous_folder(config, configuration.previous_stage_name),
        )

    def logits(self, case: str) -> tuple[torch.Tensor, dict[str, Any]]:
        """Runs the network on one preprocessed case.

        Args:
            case: Its identifier.

        Returns:
            Logits ``(heads, *shape)`` on the network's grid, float16, and nnU-Net's record of the
            preprocessing.
        """
        image, before, properties = read_case(self.cases, case, self.previous)
        data = image.astype(np.float32, copy=False)
        if before is not None:
            labels = self.plans.get_label_manager(self.dataset_json).foreground_labels
            data = np.vstack((data, one_hot(before, labels)))
        return self.predictor.logits(torch.from_numpy(data)), properties


def load_fold(config: TaskConfig) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The final network of the config's fold, and what it was made from.

    Args:
        config: The task's config.

    Returns:
        The network with its weights, on the CPU; ``init_args`` (plans, configuration,
        ``dataset_json``), ``trainer_name`` and ``inference_allowed_mirroring_axes``.

    Raises:
        UserError: The fold's training is not finished, or its checkpoint is damaged.
    """
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

    checkpoint = Checkpoint.read(require_final(config))
    header = dict(checkpoint.header)
    dataset = header["init_args"]["dataset_json"]
    manager = _manager(header["init_args"]["plans"])
    configuration = manager.get_configuration(config.configuration)
    with quiet():
        network: torch.nn.Module = find_trainer_class(
            header["trainer_name"]
        ).build_network_architecture(
            configuration.network_arch_class_name,
            configuration.network_arch_init_kwargs,
            configuration.network_arch_init_kwargs_req_import,
            determine_num_input_channels(manager, configuration, dataset),
            manager.get_label_manager(dataset).num_segmentation_heads,
            enable_deep_supervision=False,
        )
    network.load_state_dict(checkpoint.weights)
    return network.eval(), header


def fold_patches(config: TaskConfig, plans: dict[str, Any]) -> torch.Tensor:
    """Patches to compare a fold's network on, as ``example_patches`` makes them.

    Args:
        config: The task's config.
        plans: The plans of its training.
    """
    labels = config.label_set
    cascaded = settings_of(plans, config.configuration).get("previous_stage") is not None
    foreground = [value for value in labels.values if value not in (0, labels.ignore)]
    patches: torch.Tensor = example_patches(
        config.preprocessed_folder,
        plans,
        config.configuration,
        len(foreground) if cascaded else 0,
    )
    return patches


def _manager(plans: dict[str, Any]) -> Any:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    return PlansManager(plans)


def read_case(
    folder: Path, case: str, previous: Path | None = None
) -> tuple[NDArray[Any], NDArray[Any] | None, dict[str, Any]]:
    """One preprocessed case.

    Args:
        folder: nnU-Net's folder of preprocessed cases of a configuration.
        case: Its identifier.
        previous: Of a cascade: the folder of the first stage's predictions.

    Returns:
        The image ``(channel, *shape)``, the first stage's label map ``shape`` where there is one,
        and nnU-Net's record of the preprocessing.
    """
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    dataset = infer_dataset_class(str(folder))(
        str(folder), [case], None if previous is None else str(previous)
    )
    image, _, before, properties = dataset.load_case(case)
    return np.array(image[:]), None if before is None else np.array(before[:]), properties
