"""``CasePredictor`` against nnU-Net's own predictor, for every kind of configuration."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from nnunetv2.inference.export_prediction import (
    convert_predicted_logits_to_segmentation_with_correct_shape as export,
)
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from scipy.ndimage import gaussian_filter

from medseg.nnunet import exporting
from medseg.nnunet.devices import use_bfloat16
from medseg.nnunet.prediction import CasePredictor, EnsemblePredictor
from medseg.project import UserError
from tests.volumes import Volume

PLAIN = {"labels": {"background": 0, "a": 1, "b": 2}}
IGNORE = {"labels": {"background": 0, "a": 1, "b": 2, "ignore": 3}}
REGIONS = {
    "labels": {"background": 0, "whole": [1, 2], "core": [2]},
    "regions_class_order": [1, 2],
}
REGIONS_IGNORE = {
    "labels": {"background": 0, "whole": [1, 2, 3], "part": [2, 3], "core": 3, "ignore": 4},
    "regions_class_order": [1, 2, 3],
}


@dataclass(frozen=True)
class Setting:
    """A planned configuration and an image for it; spacings in mm, axes as in the file."""

    dataset: dict[str, Any] = field(default_factory=lambda: PLAIN)
    patch: tuple[int, ...] = (16, 16, 16)
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0)
    transpose: tuple[int, int, int] = (0, 1, 2)
    shape: tuple[int, int, int] = (20, 26, 24)
    image_spacing: tuple[float, float, float] = (1.27, 0.83, 0.91)
    channels: int = 1
    mirror: bool = False
    precision: str = "float32"

    @property
    def plans(self) -> dict[str, Any]:
        """As nnU-Net's planner writes them, for a network of two stages."""
        dims = len(self.patch)
        resampling = {"order_z": 0, "force_separate_z": None}
        arch = {
            "n_stages": 2,
            "features_per_stage": [4, 8],
            "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
            "kernel_sizes": [[3] * dims] * 2,
            "strides": [[1] * dims, [2] * dims],
            "n_conv_per_stage": [1, 1],
            "n_conv_per_stage_decoder": [1],
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        }
        configuration = {
            "data_identifier": "tiny",
            "preprocessor_name": "DefaultPreprocessor",
            "patch_size": list(self.patch),
            "spacing": list(self.spacing),
            "normalization_schemes": ["ZScoreNormalization"] * self.channels,
            "use_mask_for_norm": [False] * self.channels,
            "resampling_fn_data": "resample_data_or_seg_to_shape",
            "resampling_fn_data_kwargs": {"is_seg": False, **resampling, "order": 3},
            "resampling_fn_seg": "resample_data_or_seg_to_shape",
            "resampling_fn_seg_kwargs": {"is_seg": True, **resampling, "order": 1},
            "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
            "resampling_fn_probabilities_kwargs": {"is_seg": False, **resampling, "order": 1},
            "architecture": {
                "network_class_name": (
                    "dynamic_network_architectures.architectures.unet.PlainConvUNet"
                ),
                "arch_kwargs": arch,
                "_kw_requires_import": ["conv_op", "norm_op", "nonlin"],
            },
        }
        return {
            "image_reader_writer": "SimpleITKIO",
            "label_manager": "LabelManager",
            "transpose_forward": list(self.transpose),
            "transpose_backward": [self.transpose.index(axis) for axis in range(3)],
            "foreground_intensity_properties_per_channel": {
                str(channel): {} for channel in range(self.channels)
            },
            "configurations": {"tiny": configuration},
        }

    @property
    def description(self) -> dict[str, Any]:
        """nnU-Net's ``dataset.json``."""
        names = {str(channel): "MRI" for channel in range(self.channels)}
        return {**self.dataset, "channel_names": names, "file_ending": ".nii.gz"}

    def image(self) -> np.ndarray:
        """Random structures of some voxels, a border that is cropped."""
        random = np.random.default_rng(4)
        shape = (self.channels, *self.shape)
        image = gaussian_filter(random.normal(size=shape), (0, 2, 2, 2)) * 20
        image[:, :2] = 0
        return image.astype(np.float32)

    def predictor(self, *networks: torch.nn.Module) -> CasePredictor:
        """Ours."""
        return CasePredictor(
            networks,
            self.plans,
            self.description,
            configuration="tiny",
            mirror_axes=range(len(self.patch)) if self.mirror else (),
            device="cpu",
            precision=self.precision,
        )

    def theirs(self, network: torch.nn.Module) -> nnUNetPredictor:
        """nnU-Net's."""
        plans = PlansManager(self.plans)
        predictor = nnUNetPredictor(
            perform_everything_on_device=False,
            device=torch.device("cpu"),
            allow_tqdm=False,
            use_mirroring=self.mirror,
        )
        predictor.manual_initialization(
            network,
            plans,
            plans.get_configuration("tiny"),
            None,
            self.description,
            "nnUNetTrainer",
            tuple(range(len(self.patch))),
        )
        return predictor


def balanced_network(setting: Setting, seed: int = 1) -> torch.nn.Module:
    """Random weights, with which all classes occur."""
    plans = PlansManager(setting.plans)
    configuration = plans.get_configuration("tiny")
    heads = plans.get_label_manager(setting.description).num_segmentation_heads
    torch.manual_seed(seed)
    network: torch.nn.Module = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        setting.channels,
        heads,
        deep_supervision=False,
    )
    predictor = setting.predictor(network)
    data, _ = predictor.preprocess(setting.image(), setting.image_spacing)
    logits = predictor.logits(data).float().flatten(1)
    last = [layer for layer in network.modules() if getattr(layer, "out_channels", 0) == heads][-1]
    with torch.no_grad():
        last.bias -= logits.mean(1)
        for parameter in (last.weight, last.bias):
            parameter *= 3 / logits.std(1).view(-1, *[1] * (parameter.dim() - 1))
    return network


@pytest.mark.parametrize(
    "setting",
    [
        pytest.param(Setting(image_spacing=(1, 1, 1)), id="the grid of the image"),
        pytest.param(Setting(), id="fractional resampling"),
        pytest.param(Setting(IGNORE), id="ignore"),
        pytest.param(Setting(REGIONS), id="regions"),
        pytest.param(Setting(REGIONS_IGNORE, mirror=True), id="regions with ignore, mirrored"),
        pytest.param(Setting(channels=3), id="channels"),
        pytest.param(Setting(mirror=True), id="mirrored"),
        pytest.param(Setting(mirror=True, precision="bfloat16"), id="bfloat16, mirrored"),
        pytest.param(Setting(spacing=(0.9, 1.2, 1.1), transpose=(2, 0, 1)), id="transposed"),
        pytest.param(
            Setting(spacing=(2.3, 2.3, 2.3), shape=(40, 44, 50), image_spacing=(1, 1, 1)),
            id="3d_lowres",
        ),
        pytest.param(Setting(patch=(16, 24), spacing=(1, 1), mirror=True), id="2d, mirrored"),
        pytest.param(
            Setting(
                REGIONS,
                patch=(16, 24),
                spacing=(1, 1),
                transpose=(1, 0, 2),
                shape=(26, 8, 24),
                image_spacing=(0.83, 3, 0.91),
            ),
            id="2d, slices along another axis",
        ),
        pytest.param(Setting(shape=(8, 26, 24), image_spacing=(6, 0.83, 0.91)), id="thick slices"),
        pytest.param(
            Setting(
                REGIONS,
                patch=(8, 16, 16),
                spacing=(5, 1, 1),
                transpose=(2, 0, 1),
                shape=(26, 24, 10),
                image_spacing=(0.83, 0.91, 4.3),
            ),
            id="anisotropic plan, transposed",
        ),
        pytest.param(Setting(shape=(9, 12, 30)), id="smaller than a patch"),
    ],
)
def test_same_logits_and_labels(setting: Setting) -> None:
    network = balanced_network(setting)
    theirs = setting.theirs(copy.deepcopy(network))
    if setting.precision == "bfloat16":
        use_bfloat16(theirs.network)
    ours = setting.predictor(network)
    plans, configuration = theirs.plans_manager, theirs.configuration_manager
    data, _, properties = configuration.preprocessor_class(verbose=False).run_case_npy(
        setting.image(),
        None,
        {"spacing": list(setting.image_spacing)},
        plans,
        configuration,
        setting.description,
    )
    expected_logits = theirs.predict_sliding_window_return_logits(torch.from_numpy(data))
    expected = export(
        expected_logits.clone(), plans, configuration, theirs.label_manager, properties
    )

    own_data, own_properties = ours.preprocess(setting.image(), setting.image_spacing)
    logits = ours.logits(own_data)
    labels = ours.labels(logits, own_properties)
    assert torch.equal(own_data, torch.from_numpy(data))
    assert torch.equal(logits, expected_logits)
    assert labels.dtype == expected.dtype and labels.shape == setting.shape
    heads = theirs.label_manager.num_segmentation_heads
    assert len(np.unique(expected)) >= heads
    # Interpolated in single precision, theirs in double: where both round to a tie, seldom.
    assert (labels != expected).sum() <= 2


@pytest.mark.parametrize("setting", [Setting(mirror=True), Setting(REGIONS, patch=(16, 24))])
def test_folds_are_averaged_as_nnunet_does(setting: Setting) -> None:
    networks = [balanced_network(setting, seed) for seed in (1, 2, 3)]
    ours = setting.predictor(*networks)
    data, properties = ours.preprocess(setting.image(), setting.image_spacing)
    theirs = setting.theirs(copy.deepcopy(networks[0]))
    theirs.list_of_parameters = [network.state_dict() for network in networks]
    expected = theirs.predict_logits_from_preprocessed_data(data)

    logits = ours.logits(data)
    assert logits.dtype == expected.dtype == torch.float16
    # at corners Gaussian weights are so small that float16 keeps few digits of what they weigh
    assert torch.isclose(logits, expected, atol=0.02, rtol=0.005).float().mean() > 0.99
    assert (logits - setting.predictor(networks[0]).logits(data)).abs().mean() > 0.5
    labels, expected_labels = ours.labels(logits, properties), ours.labels(expected, properties)
    assert (labels != expected_labels).mean() < 0.005


@pytest.mark.parametrize("fits", [8, 3, 1])
def test_mirrored_copies_share_a_pass_where_memory_allows(fits: int) -> None:
    setting = Setting(mirror=True)
    network = balanced_network(setting)
    expected = setting.predictor(network)
    data, _ = expected.preprocess(setting.image(), setting.image_spacing)

    class Limited(torch.nn.Module):
        batches: ClassVar[list[int]] = []

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            if len(batch) > fits:
                raise torch.OutOfMemoryError("CUDA out of memory")
            self.batches.append(len(batch))
            return network(batch)

    ours = setting.predictor(Limited())
    ours._at_once = 8  # as on a GPU
    torch.testing.assert_close(ours.logits(data), expected.logits(data), atol=0.01, rtol=0.001)
    assert set(Limited.batches) == {8: {8}, 3: {2}, 1: {1}}[fits]


def their_probabilities(
    setting: Setting, predictor: CasePredictor, network: torch.nn.Module
) -> Any:
    data, properties = predictor.preprocess(setting.image(), setting.image_spacing)
    theirs = setting.theirs(network)
    logits = theirs.predict_sliding_window_return_logits(data)
    _, probabilities = export(
        logits,
        theirs.plans_manager,
        theirs.configuration_manager,
        theirs.label_manager,
        properties,
        return_probabilities=True,
    )
    return probabilities


PLANNED = [
    pytest.param(Setting(image_spacing=(1, 1, 1)), id="the grid of the image"),
    pytest.param(Setting(IGNORE, spacing=(0.9, 1.2, 1.1), transpose=(2, 0, 1)), id="transposed"),
    pytest.param(
        Setting(
            REGIONS,
            patch=(8, 16, 16),
            spacing=(5, 1, 1),
            transpose=(2, 0, 1),
            shape=(26, 24, 10),
            image_spacing=(0.83, 0.91, 4.3),
        ),
        id="regions, anisotropic plan, transposed",
    ),
    pytest.param(Setting(shape=(8, 26, 24), image_spacing=(6, 0.83, 0.91)), id="thick slices"),
    pytest.param(Setting(patch=(16, 24), spacing=(1, 1)), id="2d"),
]


@pytest.mark.parametrize("setting", PLANNED)
@pytest.mark.parametrize("block", [1, 3000])
def test_probabilities_come_as_nnunets_in_blocks(
    setting: Setting, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "BLOCK", block)
    network = balanced_network(setting)
    ours = setting.predictor(network)
    labels = ours.segment(setting.image(), setting.image_spacing)
    blocks = list(ours.probabilities(setting.image(), setting.image_spacing))
    places = [index for each in blocks for index in range(*each.place.indices(10**6))]
    assert places == list(range(setting.shape[0]))
    assert len(blocks) > 1
    probabilities = np.concatenate([each.probabilities for each in blocks], axis=1)
    expected = their_probabilities(setting, ours, network)
    assert probabilities.shape == expected.shape == (len(ours.values), *setting.shape)
    np.testing.assert_allclose(probabilities, expected, atol=1e-3)  # float16's last place
    assert np.array_equal(np.concatenate([each.labels for each in blocks]), labels)
    if setting.dataset is REGIONS:
        assert ours.values == (1, 2)
    else:
        assert ours.values == (0, 1, 2)
        np.testing.assert_allclose(probabilities.sum(axis=0), 1, atol=1e-5)


@pytest.mark.parametrize("dataset", [PLAIN, REGIONS])
def test_ensemble_averages_probabilities_on_the_grid_of_the_image(
    dataset: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "BLOCK", 3000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    settings = [Setting(dataset), Setting(dataset, patch=(16, 24), spacing=(1.1, 0.9)),
                Setting(dataset, spacing=(0.9, 1.2, 1.1), transpose=(2, 0, 1))]  # fmt: skip
    networks = [balanced_network(each, seed) for seed, each in enumerate(settings)]
    members = [each.predictor(network) for each, network in zip(settings, networks, strict=True)]
    ensemble = EnsemblePredictor(members)
    arguments = settings[0].image(), settings[0].image_spacing
    blocks = list(ensemble.probabilities(*arguments))
    expected = np.mean(
        [their_probabilities(*each) for each in zip(settings, members, networks, strict=True)],
        axis=0,
    )
    probabilities = np.concatenate([each.probabilities for each in blocks], axis=1)
    np.testing.assert_allclose(probabilities, expected, atol=1e-3)
    labels = ensemble.segment(*arguments)
    assert labels.dtype == np.uint8 and set(np.unique(labels)) == {0, 1, 2}
    if dataset is PLAIN:
        decided = expected.argmax(axis=0)
    else:
        decided = np.where(expected[1] > 0.5, 2, np.where(expected[0] > 0.5, 1, 0))
    assert (labels != decided).mean() < 0.001
    assert (ensemble.channels, ensemble.values) == (1, members[0].values)
    assert not list(tmp_path.iterdir())
    alone = EnsemblePredictor(members[:1]).segment(*arguments)
    assert np.array_equal(alone, members[0].segment(*arguments))


def test_a_full_disk_ends_an_ensemble_with_its_name(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(volume.folder))
    setting = Setting()
    member = setting.predictor(balanced_network(setting))
    ensemble = EnsemblePredictor([member, member])
    volume.leave(0)
    with pytest.raises(OSError, match="No space left") as caught:
        ensemble.segment(setting.image(), setting.image_spacing)
    assert str(volume.folder) in str(caught.value.filename)
    assert not list(volume.folder.iterdir())


def test_what_cannot_vote_together_is_named() -> None:
    setting = Setting()
    member = setting.predictor(balanced_network(setting))
    for other, message in (
        (
            Setting({"labels": {"background": 0, "a": 1, "c": 2}}),
            "the same labels: those of model 1 are background 0, a 1, b 2, those of model 2 "
            "background 0, a 1, c 2",
        ),
        (Setting(REGIONS), r"model 2 background 0, whole 1\+2 \(painted 1\), core 2 "),
        (Setting(channels=2), "the same channels: those of model 1 are MRI, .* model 2 MRI, MRI"),
    ):
        with pytest.raises(UserError, match=message):
            EnsemblePredictor([member, other.predictor(balanced_network(other))])
    with pytest.raises(UserError, match="at least one model"):
        EnsemblePredictor([])
    flat = balanced_network(Setting(patch=(16, 24), spacing=(1, 1)))
    with pytest.raises(UserError, match=r"network 2 is no fold .* has shape \(4, 1, 3, 3\)"):
        setting.predictor(balanced_network(setting), flat)
    with pytest.raises(UserError, match="no network to predict with"):
        setting.predictor()


def test_what_a_lone_network_cannot_serve_is_refused() -> None:
    setting = Setting()
    network = balanced_network(setting)
    with pytest.raises(UserError, match="reorders voxels"):
        CasePredictor(
            [network],
            {**setting.plans, "image_reader_writer": "NibabelIOWithReorient"},
            setting.description,
            configuration="tiny",
            mirror_axes=(),
            device="cpu",
        )
