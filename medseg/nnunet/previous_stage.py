"""Cascades: what the first stage predicts is input of the second.

A configuration whose plans name a ``previous_stage`` (nnU-Net's ``3d_cascade_fullres``, after
``3d_lowres``) sees, beside the image, a channel for each label: the first stage's segmentation on
its own grid. In training these are predictions of cases that the network which predicted them had
not seen; they lie where nnU-Net puts them, in ``predicted_next_stage`` of the first stage's folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medseg.config import TaskConfig
from medseg.nnunet.console import quiet
from medseg.project import Manifest, UserError, fingerprint, scratch_folder

NEXT = "predicted_next_stage"


def previous_folder(config: TaskConfig, previous: str | None) -> Path | None:
    """Where the first stage's predictions for the config's configuration lie.

    Args:
        config: The task's config.
        previous: The first stage; None where the configuration is no cascade.
    """
    return None if previous is None else _folder(config, previous)


def _folder(config: TaskConfig, previous: str) -> Path:
    return config.of(configuration=previous).results_folder / NEXT / config.configuration


def check_previous_stage(config: TaskConfig, previous: str, cases: Iterable[str]) -> str:
    """Makes sure that the first stage has predicted every case of a training.

    Args:
        config: The task's config.
        previous: The first stage.
        cases: The cases.

    Returns:
        What these predictions were made of, as a fingerprint.

    Raises:
        UserError: Some are missing.
    """
    folder = _folder(config, previous)
    made = {case: Manifest(folder, case) for case in sorted(cases)}
    missing = [case for case, record in made.items() if record.result() is None]
    if missing:
        raise UserError(
            f"configuration: {config.configuration} is the second stage of a cascade, and "
            f"{previous} has not predicted {len(missing)} of its {len(made)} cases (the first is "
            f"{missing[0]}): all folds of {previous} must be trained and validated first. The "
            f"pipeline cross_validate with configurations='[\"{config.configuration}\"]' does both."
        )
    return fingerprint({case: record.read()["inputs"] for case, record in made.items()})


class NextStages:
    """The second stages that wait for the predictions of a configuration.

    Those whose cases are preprocessed: before that, their grid is not known.

    Args:
        config: The task's config, of the first stage.
        plans: nnU-Net's ``PlansManager``.
        configuration: Its ``ConfigurationManager``.
        dataset: nnU-Net's ``dataset.json``.
    """

    def __init__(
        self, config: TaskConfig, plans: Any, configuration: Any, dataset: dict[str, Any]
    ) -> None:
        self._plans, self._configuration, self._dataset = plans, configuration, dataset
        self._stages: list[tuple[Path, Path]] = []
        for name in next_stages(plans, config.configuration):
            cases = config.preprocessed_folder / plans.get_configuration(name).data_identifier
            target = _folder(config.of(configuration=name), config.configuration)
            if cases.is_dir():
                self._stages.append((cases, target))

    def are_done(self, case: str, inputs: str) -> bool:
        """Whether all of them have the prediction of a case.

        Args:
            case: Its identifier.
            inputs: What it is predicted from, as a fingerprint.
        """
        return all(
            Manifest(target, case).is_done(inputs)
            for cases, target in self._stages
            if (cases / f"{case}.b2nd").is_file()
        )

    def write(
        self, case: str, logits: torch.Tensor, properties: dict[str, Any], inputs: str
    ) -> None:
        """Writes the label map of a case on the grid of each second stage, as nnU-Net does.

        Args:
            case: Its identifier.
            logits: ``(heads, *shape)`` on the first stage's grid.
            properties: nnU-Net's record of the preprocessing.
            inputs: What the prediction was made of, as a fingerprint.
        """
        from nnunetv2.inference.export_prediction import resample_and_save
        from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

        for cases, target in self._stages:
            if not (cases / f"{case}.b2nd").is_file():
                continue
            kind = infer_dataset_class(str(cases))
            shape = kind(str(cases), [case]).load_case(case)[0].shape[1:]
            target.mkdir(parents=True, exist_ok=True)
            with scratch_folder(target / case) as temporary, quiet():
                resample_and_save(
                    logits,
                    list(shape),
                    str(temporary / case),
                    self._plans,
                    self._configuration,
                    properties,
                    self._dataset,
                    torch.get_num_threads(),
                    kind,
                )
                written = target / f"{case}.b2nd"
                (temporary / written.name).replace(written)
            Manifest(target, case).record(inputs, [written])


def next_stages(plans: Any, configuration: str) -> list[str]:
    """The configurations whose first stage is this one.

    Args:
        plans: nnU-Net's ``PlansManager``.
        configuration: A configuration's name.
    """
    return [
        name
        for name in plans.available_configurations
        if plans.get_configuration(name).previous_stage_name == configuration
    ]


def one_hot(labels: NDArray[Any], values: Sequence[int]) -> NDArray[np.float32]:
    """A label map as one channel for each label.

    Args:
        labels: ``(*shape)`` or ``(1, *shape)``.
        values: The foreground's labels, in nnU-Net's order.

    Returns:
        ``(labels, *shape)``: 1 where the label is, else 0.
    """
    shape = labels.shape[1:] if labels.ndim == 4 else labels.shape
    hot: NDArray[np.float32] = np.stack(
        [(labels.reshape(shape) == value).astype(np.float32) for value in values]
    )
    return hot
