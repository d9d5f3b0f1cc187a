"""One case through trained networks, with nnU-Net's own steps.

``nnUNetPredictor`` does the same for folders of cases, with worker processes that each import
everything anew; its module also loads torch's compiler. For one case in one process that start-up
is most of the time, so the sliding window is written out here, on nnU-Net's preprocessing, tiling
and weights. Logits are those of ``nnUNetPredictor`` to the bit, and so are labels but for single
voxels where two classes are level (see :class:`~medseg.nnunet.exporting.Exporter`).
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from numpy.typing import NDArray

from medseg.config import Labels
from medseg.imaging import Volume, from_zyx, to_zyx
from medseg.nnunet.exporting import Block, Exporter
from medseg.nnunet.plans import channel_names, settings_of
from medseg.nnunet.previous_stage import one_hot
from medseg.project import UserError, disk_errors

TILE_STEP = 0.5
"""Step between tiles, as a fraction of the patch: nnU-Net's default for prediction."""

READERS = ("SimpleITKIO", "NibabelIO")
"""nnU-Net's image readers that keep the file's voxel order (they differ in nothing else here)."""


class Predictor(ABC):
    """Segments cases: one network, or several that vote."""

    @property
    @abstractmethod
    def channels(self) -> int:
        """The number of input channels."""

    @property
    @abstractmethod
    def values(self) -> tuple[int, ...]:
        """The label value of each head, in the order of :meth:`probabilities`.

        All labels from the background on; of regions, what each is painted with.
        """

    @abstractmethod
    def segment(self, image: NDArray[Any], spacing: Sequence[float]) -> NDArray[Any]:
        """Segments one volume.

        Args:
            image: ``(channel, z, y, x)``, stored voxel order.
            spacing: Millimetres along z, y, x.

        Returns:
            Label values ``(z, y, x)`` on the image's grid; uint8, or uint16 from 255 labels on.
        """

    @abstractmethod
    def probabilities(self, image: NDArray[Any], spacing: Sequence[float]) -> Iterator[Block]:
        """Segments one volume, and says how sure each voxel is.

        Args:
            image: ``(channel, z, y, x)``, stored voxel order.
            spacing: Millimetres along z, y, x.

        Yields:
            Some slices at a time, from the first to the last, with the labels that
            :meth:`segment` gives. What a consumer keeps is its own: the rest is not held.
        """

    def postprocess(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Does to the labels of :meth:`probabilities`, all of a case, what :meth:`segment` does.

        Args:
            labels: Label values, three axes in any order.
        """
        return labels

    def segment_volumes(self, volumes: Sequence[Volume]) -> NDArray[Any]:
        """Segments one case.

        Args:
            volumes: One a channel, or one of four dimensions, on the same grid.

        Returns:
            Label values ``[i, j, k]`` on that grid.

        Raises:
            UserError: The volumes do not have the same grid.
        """
        return from_zyx(self.segment(to_zyx(volumes), volumes[0].spacing[::-1]))


class CasePredictor(Predictor):
    """Segments volumes with one network, or the folds of one configuration.

    Logits of folds are averaged tile by tile, on the network's grid, so that memory is that of one
    fold and the weights.

    Args:
        networks: The folds; each maps a batch of patches ``(1, channels, *patch)`` to logits
            ``(1, heads, *patch)``.
        plans: nnU-Net's plans.
        dataset_json: nnU-Net's ``dataset.json``.
        configuration: Name of the configuration in the plans, such as ``3d_fullres``.
        mirror_axes: Spatial axes over which predictions are averaged (test-time augmentation);
            empty for none.
        device: Where the network runs.
        precision: ``float32``, ``bfloat16`` or ``float16``: the arithmetic of convolutions.
        previous: Of a cascade: what predicts its first stage.

    Raises:
        UserError: The plans lack the configuration, or the networks are not folds of one.
    """

    def __init__(
        self,
        networks: Sequence[torch.nn.Module],
        plans: Mapping[str, Any],
        dataset_json: Mapping[str, Any],
        *,
        configuration: str,
        mirror_axes: Sequence[int],
        device: str,
        precision: str = "float32",
        previous: Predictor | None = None,
    ) -> None:
        # Where its environment variables are missing, nnU-Net says so on import; none is used here.
        with contextlib.redirect_stdout(None):
            from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        self._settings = settings_of(plans, configuration)
        self._plans = PlansManager(dict(plans))
        self._configuration = self._plans.get_configuration(configuration)
        if plans["image_reader_writer"] not in READERS:
            raise UserError(
                f"the plans read images with {plans['image_reader_writer']}, which reorders "
                f"voxels; only {' and '.join(READERS)} are supported."
            )
        _check_folds(networks)
        self._dataset_json = dict(dataset_json)
        self._labels = self._plans.get_label_manager(self._dataset_json)
        self._exporter = Exporter(self._plans, self._configuration, self._settings, self._labels)
        self._networks = [network.to(device).eval() for network in networks]
        axes = [axis + 2 for axis in mirror_axes]
        counts = range(len(axes) + 1)
        self._mirrorings = [c for count in counts for c in itertools.combinations(axes, count)]
        self._device = torch.device(device)
        # Mirrored copies in one pass keep a GPU busy; a CPU is with one, and takes longer for all.
        self._at_once = 1 if self._device.type == "cpu" else len(self._mirrorings)
        self._precision = getattr(torch, precision)
        self._previous = previous

    @property
    def channels(self) -> int:
        """As :attr:`Predictor.channels`."""
        return len(channel_names(self._dataset_json))

    @property
    def values(self) -> tuple[int, ...]:
        """As :attr:`Predictor.values`."""
        return self._exporter.values

    @property
    def task(self) -> dict[str, str]:
        """What is segmented in what, in words: ``labels`` and ``channels``."""
        dataset = self._dataset_json
        labels = Labels.of(dataset["labels"], dataset.get("regions_class_order"))
        return {"labels": _named(labels), "channels": ", ".join(channel_names(dataset))}

    @property
    def exporter(self) -> Exporter:
        """What brings logits to the image's grid."""
        return self._exporter

    def segment(self, image: NDArray[Any], spacing: Sequence[float]) -> NDArray[Any]:
        """As :meth:`Predictor.segment`."""
        data, properties = self.preprocess(image, spacing)
        return self.labels(self.logits(data), properties)

    def probabilities(self, image: NDArray[Any], spacing: Sequence[float]) -> Iterator[Block]:
        """As :meth:`Predictor.probabilities`."""
        data, properties = self.preprocess(image, spacing)
        return self._exporter.blocks(self.logits(data), properties)

    def preprocess(
        self, image: NDArray[Any], spacing: Sequence[float]
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Transposes, crops, normalises and resamples a volume as in training.

        Args:
            image: ``(channel, z, y, x)``.
            spacing: Millimetres along z, y, x.

        Returns:
            The network's input ``(channel, *shape)``, and nnU-Net's record of what was done. Of a
            cascade the last channels are the labels that its first stage found, one each.

        Raises:
            UserError: It is a cascade, and nothing predicts its first stage.
        """
        found = None
        if (stage := self._configuration.previous_stage_name) is not None:
            if self._previous is None:
                raise UserError(
                    f"the configuration is the second stage of a cascade and needs the "
                    f"segmentation of {stage}: use a model that find_best_configuration has "
                    "packaged, which holds both."
                )
            found = self._previous.segment(image, spacing)[None].astype(np.float32)
        with contextlib.redirect_stdout(None):
            preprocessor = self._configuration.preprocessor_class(verbose=False)
        data, stages, properties = preprocessor.run_case_npy(
            image,
            found,
            {"spacing": list(spacing)},
            self._plans,
            self._configuration,
            self._dataset_json,
        )
        if found is not None:
            data = np.vstack((data, one_hot(stages, self._labels.foreground_labels)))
        return torch.from_numpy(np.ascontiguousarray(data, dtype=np.float32)), properties

    def logits(self, data: torch.Tensor) -> torch.Tensor:
        """Runs the network over all tiles and joins them with nnU-Net's Gaussian weights.

        Args:
            data: The preprocessed volume ``(channel, *shape)``.

        Returns:
            Logits ``(heads, *shape)`` of type float16, as nnU-Net keeps them.

        Raises:
            UserError: The network's output overflows float16.
        """
        padded, inside = pad_nd_image(
            data, self._configuration.patch_size, "constant", {"value": 0}, True, None
        )
        try:
            joined = self._join_tiles(padded, self._device)
        except torch.OutOfMemoryError:  # the volume's logits do not fit beside the network
            torch.cuda.empty_cache()
            joined = self._join_tiles(padded, torch.device("cpu"))
        if bool(torch.isinf(joined).any()):
            raise UserError("the network's output is infinite: the model file is damaged.")
        return joined[(slice(None), *inside[1:])].cpu()

    def _join_tiles(self, data: torch.Tensor, device: torch.device) -> torch.Tensor:
        from nnunetv2.inference.sliding_window_prediction import compute_gaussian

        patch = tuple(self._configuration.patch_size)
        weight = compute_gaussian(patch, sigma_scale=1 / 8, value_scaling_factor=10, device=device)
        shape = data.shape[1:]
        data = data.to(device)
        total = torch.zeros(
            (self._labels.num_segmentation_heads, *shape), dtype=torch.half, device=device
        )
        weights = torch.zeros(shape, dtype=torch.half, device=device)
        lower = torch.autocast(
            self._device.type, self._precision, enabled=self._precision != torch.float32
        )
        with torch.inference_mode(), lower:
            for place in self._tiles(shape):
                tile = data[(slice(None), *place)][None].to(self._device)
                logits = self._mean_of_folds(tile)[0].to(device)
                total[(slice(None), *place)] += logits * weight
                weights[place] += weight
        return total.div_(weights)

    def _tiles(self, shape: Sequence[int]) -> Iterator[tuple[int | slice, ...]]:
        from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window

        patch = self._configuration.patch_size
        flat = len(shape) - len(patch)  # 1: a 2d configuration goes slice by slice
        steps = compute_steps_for_sliding_window(tuple(shape[flat:]), tuple(patch), TILE_STEP)
        for corner in itertools.product(*map(range, shape[:flat]), *steps):
            ends = zip(corner[flat:], patch, strict=True)
            yield (*corner[:flat], *(slice(start, start + size) for start, size in ends))

    def _mean_of_folds(self, tile: torch.Tensor) -> torch.Tensor:
        first, *others = self._networks
        total = self._predict(first, tile)
        for network in others:
            total = total + self._predict(network, tile)
        return total / len(self._networks) if others else total

    def _predict(self, network: torch.nn.Module, tile: torch.Tensor) -> torch.Tensor:
        while True:
            try:
                return self._mean_of_mirrorings(network, tile)
            except torch.OutOfMemoryError:
                if self._at_once == 1:
                    raise
                self._at_once //= 2
            torch.cuda.empty_cache()

    def _mean_of_mirrorings(self, network: torch.nn.Module, tile: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor | None = None
        for first in range(0, len(self._mirrorings), self._at_once):
            mirrorings = self._mirrorings[first : first + self._at_once]
            copies = [torch.flip(tile, flipped) if flipped else tile for flipped in mirrorings]
            output = network(torch.cat(copies))
            if output.dtype == torch.bfloat16:  # too coarse to add up in
                output = output.float()
            for logits, flipped in zip(output.split(1), mirrorings, strict=True):
                logits = torch.flip(logits, flipped) if flipped else logits
                total = logits if total is None else total + logits
        assert total is not None  # the first mirroring is none
        return total / len(self._mirrorings)

    def labels(self, logits: torch.Tensor, properties: Mapping[str, Any]) -> NDArray[Any]:
        """Brings logits back to the grid of the image and decides for labels.

        Args:
            logits: ``(heads, *shape)`` on the network's grid.
            properties: What :meth:`preprocess` returned.

        Returns:
            Label values ``(z, y, x)``.
        """
        return self._exporter.labels(logits, properties)


class EnsemblePredictor(Predictor):
    """Several configurations that vote: their probabilities are averaged on the image's grid.

    As nnU-Net's ``ensemble`` has it, but for regions, which that misjudges (it takes the sigmoid
    of a sigmoid, so that every voxel is in each region). One member computes at a time; the
    logits of the others lie in scratch files, and probabilities are made some slices at a time.

    Args:
        predictors: The members: other configurations, plans or folds, for the same labels and
            channels.

    Raises:
        UserError: There is no member, or they are of different tasks.
    """

    def __init__(self, predictors: Sequence[CasePredictor]) -> None:
        if not predictors:
            raise UserError("an ensemble needs at least one model: name one.")
        self._predictors = list(predictors)
        expected = predictors[0].task
        for number, predictor in enumerate(predictors[1:], start=2):
            for what, ours, theirs in zip(
                expected, expected.values(), predictor.task.values(), strict=True
            ):
                if ours != theirs:
                    raise UserError(
                        f"the models of an ensemble must have the same {what}: those of model 1 "
                        f"are {ours}, those of model {number} {theirs}. Leave one of them out."
                    )

    @property
    def channels(self) -> int:
        """As :attr:`Predictor.channels`."""
        return self._predictors[0].channels

    @property
    def values(self) -> tuple[int, ...]:
        """As :attr:`Predictor.values`."""
        return self._predictors[0].values

    def segment(self, image: NDArray[Any], spacing: Sequence[float]) -> NDArray[Any]:
        """As :meth:`Predictor.segment`."""
        if len(self._predictors) == 1:
            return self._predictors[0].segment(image, spacing)
        return np.concatenate([block.labels for block in self.probabilities(image, spacing)])

    def probabilities(self, image: NDArray[Any], spacing: Sequence[float]) -> Iterator[Block]:
        """As :meth:`Predictor.probabilities`."""
        if len(self._predictors) == 1:
            yield from self._predictors[0].probabilities(image, spacing)
            return
        with contextlib.ExitStack() as scratch:
            members = []
            for number, predictor in enumerate(self._predictors, start=1):
                data, properties = predictor.preprocess(image, spacing)
                logits = predictor.logits(data)
                del data
                if number < len(self._predictors):  # the last one's may stay
                    logits = scratch.enter_context(set_aside(logits))
                members.append(predictor.exporter.blocks(logits, properties))
            yield from self._predictors[0].exporter.average(members)


@contextlib.contextmanager
def set_aside(logits: torch.Tensor) -> Iterator[torch.Tensor]:
    """The same logits, out of memory: in a file that nobody sees and that ends with the block."""
    name = Path(tempfile.gettempdir(), "logits")
    with tempfile.TemporaryFile(dir=name.parent) as file:
        with disk_errors(name):
            for head in logits:  # written: a mapped file would end the process on a full disk
                file.write(head.contiguous().numpy().data)
            file.flush()
        yield torch.from_numpy(np.memmap(file, np.float16, "c", shape=tuple(logits.shape)))


def _named(labels: Labels) -> str:
    values = {item.name: "+".join(map(str, item.values)) for item in labels.structures.values()}
    return ", ".join(
        f"{name} {values.get(name, value)}"
        + (f" (painted {value})" if labels.has_regions and value else "")
        for name, value in labels.painted.items()
    )


def _check_folds(networks: Sequence[torch.nn.Module]) -> None:
    """Folds of one configuration have weights of the same names and shapes.

    Raises:
        UserError: There is none, or one has others.
    """
    if not networks:
        raise UserError("there is no network to predict with: name at least one fold.")
    weights = [
        {name: tuple(weight.shape) for name, weight in network.state_dict().items()}
        for network in networks
    ]
    for number, own in enumerate(weights[1:], start=2):
        for name in (*weights[0], *own):
            first, second = weights[0].get(name), own.get(name)
            if first != second:
                raise UserError(
                    f"network {number} is no fold of the configuration of network 1: its {name} "
                    f"has shape {second or 'none'}, that of network 1 {first or 'none'}. Folds of "
                    "an ensemble need the same plans; leave it out, or train it anew with them."
                )
