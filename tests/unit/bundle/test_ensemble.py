"""A packaged model of several networks: one file, read whole by us and by its first member."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from medseg.bundle import ensemble_file, package_ensemble, segment
from medseg.bundle.inference import build_predictor
from medseg.bundle.members import MEMBERS, Members, load_member
from medseg.bundle.torchscript import load_packaged
from medseg.config import TaskConfig
from medseg.imaging import read_nifti
from medseg.nnunet import load_checkpoint
from medseg.nnunet.choice import Choice, check_folds, choice_file
from medseg.nnunet.postprocessing import keep_largest
from medseg.nnunet.prediction import CasePredictor
from medseg.project import UserError, write_json

Configure = Callable[..., TaskConfig]

FOLDS = (0, 1)
STEPS = ((1, 2),)


def choose(config: TaskConfig, folds: tuple[int, ...] = FOLDS, **fields: object) -> None:
    """What find_best_configuration would have left."""
    choice = {
        "configurations": ("tiny",),
        "folds": folds,
        "postprocessing": (),
        "dice": 0.61234,
        "structures": {"Anterior": 0.6, "Posterior": None},
        "candidates": [],
        **fields,
    }
    write_json(choice_file(config), Choice.from_json(choice).to_json())


@pytest.fixture(scope="module")
def voting(
    trained: TaskConfig, configure: Configure, tmp_path_factory: pytest.TempPathFactory
) -> TaskConfig:
    """Two folds, the second a changed copy of the first, packaged as one model."""
    root = tmp_path_factory.mktemp("ensemble") / "root"
    shutil.copytree(trained.root.path, root)
    config = configure(root)
    other = config.of(fold=1)
    shutil.copytree(config.fold_folder(), other.fold_folder())
    path = other.fold_folder() / "checkpoint_final.pth"
    checkpoint = load_checkpoint(path)
    torch.manual_seed(3)
    for name, weight in checkpoint["network_weights"].items():
        if name.endswith("conv.weight"):
            weight += 0.3 * weight.std() * torch.randn_like(weight)
    torch.save(checkpoint, path)
    choose(config)
    result = package_ensemble(config)
    assert result["path"] == "bundle/models/ensemble/model.ts"
    assert (result["mean_dice"], result["dice_Anterior"]) == (0.6123, 0.6)
    assert "dice_Posterior" not in result
    return config


def test_the_networks_are_there_once_and_are_read_when_asked_for(voting: TaskConfig) -> None:
    packaged = load_packaged(ensemble_file(voting))
    assert packaged.members is not None
    names = [(each.configuration, each.fold, each.file) for each in packaged.members.networks]
    assert names == [("tiny", 0, ""), ("tiny", 1, "members/1.ts")]
    with zipfile.ZipFile(ensemble_file(voting)) as archive:
        assert archive.testzip() is None
        stored = sum(item.file_size for item in archive.infolist() if "/data/" in item.filename)
    own = {value.data_ptr(): value.nbytes for value in packaged.network.state_dict().values()}
    assert stored == sum(own.values())  # of the first network alone
    first, second = packaged.networks("tiny")
    assert first is packaged.network
    patch = torch.randn(1, 1, 24, 32, 40)
    with torch.inference_mode():
        assert not torch.equal(first(patch), second(patch))
    assert packaged.metadata["description"].startswith("nnU-Net (tiny, 2 folds voting, ")


def test_other_readers_get_the_first_member(voting: TaskConfig) -> None:
    extra = {"metadata.json": "", "inference.json": ""}
    network = torch.jit.load(  # type: ignore[no-untyped-call]
        ensemble_file(voting), _extra_files=extra
    )
    inference = json.loads(extra["inference.json"])
    assert inference["nnunet_config_ckpt"]["configuration"] == "tiny"
    assert json.loads(extra["metadata.json"])["eval_metrics"]["mean_dice"] == 0.6123
    packaged = load_packaged(ensemble_file(voting))
    patch = torch.randn(1, 1, 24, 32, 40)
    with torch.inference_mode():
        assert torch.equal(network(patch), packaged.network(patch))


def test_folds_vote(voting: TaskConfig, image: Path, tmp_path: Path) -> None:
    packaged = load_packaged(ensemble_file(voting))
    alone = [
        CasePredictor(
            [network],
            packaged.plans,
            packaged.dataset,
            configuration="tiny",
            mirror_axes=(),
            device="cpu",
        )
        for network in packaged.networks("tiny")
    ]
    volume = read_nifti(image)
    array = volume.array.T[None].astype(np.float32)
    data, properties = alone[0].preprocess(array, volume.spacing[::-1])
    mean = sum(each.logits(data).float() for each in alone) / 2
    expected = alone[0].labels(mean.half(), properties)
    target = tmp_path / "case.nii.gz"
    options = {"test_time_augmentation": False, "precision": "float32"}
    segment(ensemble_file(voting), image, target, **options)  # type: ignore[arg-type]
    found = read_nifti(target).array.T
    single = alone[0].segment(array, volume.spacing[::-1])
    assert (found != expected).mean() < 5e-3  # where classes are almost level
    assert (found != single).mean() > 5e-2


def test_recorded_post_processing_is_applied(
    voting: TaskConfig, image: Path, tmp_path: Path
) -> None:
    volume = read_nifti(image)
    array = volume.array.T[None].astype(np.float32)
    plain = build_predictor(load_packaged(ensemble_file(voting)), False)
    labels = plain.segment(array, volume.spacing[::-1])
    config = voting.model_copy(update={"bundle_config": voting.bundle_config})
    choose(config, folds=(0,), postprocessing=STEPS)
    try:
        package_ensemble(config)
        packaged = load_packaged(ensemble_file(config))
        assert packaged.members is not None
        assert packaged.members.postprocessing == STEPS
        predictor = build_predictor(packaged, False)
        before = CasePredictor(
            packaged.networks("tiny"),
            packaged.plans,
            packaged.dataset,
            configuration="tiny",
            mirror_axes=(),
            device="cpu",
        ).segment(array, volume.spacing[::-1])
        found = predictor.segment(array, volume.spacing[::-1])
        assert np.array_equal(found, keep_largest(before, STEPS))
        assert 0 < (found > 0).sum() < (before > 0).sum()
        assert labels.shape == found.shape
    finally:
        choose(voting)
        package_ensemble(voting)


def test_a_missing_fold_is_named_with_the_command(voting: TaskConfig) -> None:
    message = (
        r"fold 3 of tiny, fold 4 of tiny are not trained to the end: medseg run cross_validate "
        r"-p config_file_path=config.yaml -p folds='\[3, 4\]' -p configurations='\[\"tiny\"\]' "
        "trains and validates them."
    )
    with pytest.raises(UserError, match=message):
        check_folds(voting, ["tiny"], [0, 1, 3, 4])


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("plans", lambda initial: initial["plans"].update(image_reader_writer="NibabelIO")),
        (
            "plans of the configuration",
            lambda initial: initial["plans"]["configurations"]["tiny"].update(spacing=[1, 1, 1]),
        ),
        (
            "channels",
            lambda initial: initial["dataset_json"].update(channel_names={"0": "CT"}),
        ),
        (
            "labels",
            lambda initial: initial["dataset_json"].update(labels={"background": 0, "a": 1}),
        ),
    ],
)
def test_folds_of_other_trainings_are_refused_by_name(
    voting: TaskConfig, part: str, change: Callable[[dict[str, object]], None]
) -> None:
    path = voting.of(fold=1).fold_folder() / "checkpoint_final.pth"
    before = path.read_bytes()
    checkpoint = load_checkpoint(path)
    change(checkpoint["init_args"])
    torch.save(checkpoint, path)
    try:
        message = f"fold 1 of tiny was trained with other {part} than fold 0 of tiny"
        with pytest.raises(UserError, match=message):
            package_ensemble(voting)
    finally:
        path.write_bytes(before)


def test_a_damaged_file_is_a_sentence(voting: TaskConfig, tmp_path: Path) -> None:
    model = tmp_path / "model.ts"
    with zipfile.ZipFile(ensemble_file(voting)) as source, zipfile.ZipFile(model, "w") as target:
        for item in source.infolist():
            if not item.filename.endswith("members/1.ts"):
                target.writestr(item, source.read(item))
    packaged = load_packaged(model)
    with pytest.raises(UserError, match=r"its network members/1.ts is missing"):
        build_predictor(packaged)
    for text in ("[]", "{}", '{"networks": [], "votes": ["a"], "postprocessing": []}', "x"):
        with pytest.raises(UserError, match=f"has a {MEMBERS} that does not say"):
            Members.from_json(text, model)
    with pytest.raises(UserError, match="missing or cannot be read"):
        load_member(ensemble_file(voting), "metadata.json")


def test_a_model_without_its_first_stage_is_refused(voting: TaskConfig) -> None:
    packaged = load_packaged(ensemble_file(voting))
    packaged.plans["configurations"]["tiny"]["previous_stage"] = "low"
    with pytest.raises(UserError, match="lacks low, the first stage of its cascade"):
        build_predictor(packaged)
