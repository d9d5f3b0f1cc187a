"""One case through a trained network, with nnU-Net's own steps.

``nnUNetPredictor`` does the same for folders of cases, with worker processes that each import
everything anew; its module also loads torch's compiler. For one case in one process that start-up
is most of the time, so the sliding window is written out here, on nnU-Net's preprocessing, tiling
and weights. Logits are those of ``nnUNetPredictor`` to the bit, and so are labels but for single
voxels where two classes are level (see :meth:`CasePredictor.labels`).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from numpy.typing import NDArray

from medseg.imaging import Volume, from_zyx, to_zyx
from medseg.nnunet.plans import channel_names, settings_of
from medseg.project import UserError

TILE_STEP = 0.5
"""Step between tiles, as a fraction of the patch: nnU-Net's default for prediction."""

READERS = ("SimpleITKIO", "NibabelIO")
"""nnU-Net's image readers that keep the file's voxel order (they differ in nothing else here)."""


class CasePredictor:
    """Segments volumes with one network.

    Args:
        network: Maps a batch of patches ``(1, channels, *patch)`` to logits
            ``(1, heads, *patch)``.
        plans: nnU-Net's plans.
        dataset_json: nnU-Net's ``dataset.json``.
        configuration: Name of the configuration in the plans, such as ``3d_fullres``.
        mirror_axes: Spatial axes over which predictions are averaged (test-time augmentation);
            empty for none.
        device: Where the network runs.
        precision: ``float32``, ``bfloat16`` or ``float16``: the arithmetic of convolutions.

    Raises:
        UserError: The plans lack the configuration, or it is one that a single network cannot
            serve (a cascade).
    """

    def __init__(
        self,
        network: torch.nn.Module,
        plans: Mapping[str, Any],
        dataset_json: Mapping[str, Any],
        *,
        configuration: str,
        mirror_axes: Sequence[int],
        device: str,
        precision: str = "float32",
    ) -> None:
        # Where its environment variables are missing, nnU-Net says so on import; none is used here.
        with contextlib.redirect_stdout(None):
            from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        self._settings = settings_of(plans, configuration)
        self._plans = PlansManager(dict(plans))
        self._configuration = self._plans.get_configuration(configuration)
        if self._configuration.previous_stage_name is not None:
            raise UserError(
                f"the configuration {configuration!r} is a cascade: it needs the segmentation of "
                "another network as input. Use 3d_fullres, 3d_lowres or 2d."
            )
        if plans["image_reader_writer"] not in READERS:
            raise UserError(
                f"the plans read images with {plans['image_reader_writer']}, which reorders "
                f"voxels; only {' and '.join(READERS)} are supported."
            )
        self._dataset_json = dict(dataset_json)
        self._labels = self._plans.get_label_manager(self._dataset_json)
        self._network = network.to(device).eval()
        self._mirror_axes = tuple(mirror_axes)
        self._device = torch.device(device)
        self._precision = getattr(torch, precision)

    @property
    def channels(self) -> int:
        """The number of input channels."""
        return len(channel_names(self._dataset_json))

    def segment(self, image: NDArray[Any], spacing: Sequence[float]) -> NDArray[Any]:
        """Segments one volume.

        Args:
            image: ``(channel, z, y, x)``, stored voxel order.
            spacing: Millimetres along z, y, x.

        Returns:
            Label values ``(z, y, x)`` on the image's grid; uint8, or uint16 from 255 labels on.
        """
        data, properties = self.preprocess(image, spacing)
        return self.labels(self.logits(data), properties)

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

    def preprocess(
        self, image: NDArray[Any], spacing: Sequence[float]
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Transposes, crops, normalises and resamples a volume as in training.

        Args:
            image: ``(channel, z, y, x)``.
            spacing: Millimetres along z, y, x.

        Returns:
            The network's input ``(channel, *shape)``, and nnU-Net's record of what was done.
        """
        with contextlib.redirect_stdout(None):
            preprocessor = self._configuration.preprocessor_class(verbose=False)
        data, _, properties = preprocessor.run_case_npy(
            image,
            None,
            {"spacing": list(spacing)},
            self._plans,
            self._configuration,
            self._dataset_json,
        )
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
                total[(slice(None), *place)] += self._predict(tile)[0].to(device) * weight
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

    def _predict(self, tile: torch.Tensor) -> torch.Tensor:
        axes = [axis + 2 for axis in self._mirror_axes]
        mirrorings = [
            flipped
            for count in range(len(axes) + 1)
            for flipped in itertools.combinations(axes, count)
        ]
        total: torch.Tensor | None = None
        for flipped in mirrorings:
            mirrored = torch.flip(tile, flipped) if flipped else tile
            logits = self._network(mirrored)
            if logits.dtype == torch.bfloat16:  # too coarse to add up in
                logits = logits.float()
            logits = torch.flip(logits, flipped) if flipped else logits
            total = logits if total is None else total + logits
        assert total is not None  # the first mirroring is none
        return total / len(mirrorings)

    def labels(self, logits: torch.Tensor, properties: Mapping[str, Any]) -> NDArray[Any]:
        """Brings logits back to the grid of the image and decides for labels.

        Resampled logits are rounded to float16, in which nnU-Net keeps them, so that what is level
        there is level here, and the lower label wins. Interpolation itself is in single precision,
        nnU-Net's in double: one voxel in 100,000, or fewer, is rounded to the other side of a tie.

        Args:
            logits: ``(heads, *shape)`` on the network's grid.
            properties: What :meth:`preprocess` returned.

        Returns:
            Label values ``(z, y, x)``.
        """
        cropped = properties["shape_after_cropping_and_before_resampling"]
        new = [properties["spacing"][axis] for axis in self._plans.transpose_forward]
        old = list(self._configuration.spacing)
        old = new[: len(new) - len(old)] + old
        options = self._settings["resampling_fn_probabilities_kwargs"]
        linear = (
            self._settings["resampling_fn_probabilities"] == "resample_data_or_seg_to_shape"
            and options["order"] == 1
            and options["order_z"] == 0
        )
        if linear:
            heads: Iterator[torch.Tensor] = self._resample_linear(logits, cropped, old, new)
        else:
            resampled = self._configuration.resampling_fn_probabilities(logits, cropped, old, new)
            heads = iter(torch.as_tensor(resampled))
        decided = self._decide(heads)
        whole = np.zeros(properties["shape_before_cropping"], dtype=decided.dtype)
        box = properties["bbox_used_for_cropping"]
        whole[tuple(slice(start, end) for start, end in box)] = decided
        return whole.transpose(self._plans.transpose_backward)

    def _resample_linear(
        self,
        logits: torch.Tensor,
        shape: Sequence[int],
        old: Sequence[float],
        new: Sequence[float],
    ) -> Iterator[torch.Tensor]:
        """One head after the other, as nnU-Net's default does it for all at once.

        That default (scikit-image, order 1, edge mode) samples at the same half-voxel positions as
        torch's interpolation; with anisotropic voxels it takes the nearest slice along the coarse
        axis. Same labels, a tenth of the time, and the memory of one head.
        """
        from nnunetv2.configuration import ANISO_THRESHOLD
        from nnunetv2.preprocessing.resampling.default_resampling import (
            determine_do_sep_z_and_axis,
        )

        options = self._settings["resampling_fn_probabilities_kwargs"]
        threshold = options.get("separate_z_anisotropy_threshold", ANISO_THRESHOLD)
        separate, axis = determine_do_sep_z_and_axis(
            options["force_separate_z"], old, new, threshold
        )
        size = [int(length) for length in shape]
        for head in logits:
            volume = head.float()
            if list(volume.shape) == size:
                yield head
            elif separate:
                volume = volume.movedim(axis, 0)
                scale = volume.shape[0] / size[axis]
                positions = (torch.arange(size[axis], dtype=torch.float64) + 0.5) * scale - 0.5
                nearest = (positions + 0.5).floor().long().clamp(0, volume.shape[0] - 1)
                plane = size[:axis] + size[axis + 1 :]
                volume = torch.nn.functional.interpolate(
                    volume[None], plane, mode="bilinear", align_corners=False
                )[0]
                yield volume[nearest].movedim(0, axis).half()
            else:
                yield torch.nn.functional.interpolate(
                    volume[None, None], size, mode="trilinear", align_corners=False
                )[0, 0].half()

    def _decide(self, heads: Iterator[torch.Tensor]) -> NDArray[Any]:
        dtype = np.uint8 if len(self._labels.foreground_labels) < 255 else np.uint16
        first = next(heads)
        labels = torch.zeros(first.shape, dtype=torch.int16)
        if self._labels.has_regions:
            # regions overlap: each has a sigmoid of its own, later ones overwrite earlier ones
            regions = zip(
                self._labels.regions_class_order, itertools.chain([first], heads), strict=True
            )
            for value, head in regions:
                labels[head > 0] = int(value)
        else:
            best = first
            for index, head in enumerate(heads, start=1):
                better = head > best
                labels[better] = index
                best = torch.where(better, head, best)
        decided: NDArray[Any] = labels.numpy().astype(dtype)
        return decided
