"""Several configurations: cascades, and pairs that vote, as in nnU-Net."""

from __future__ import annotations

import copy
import json
import shutil
from typing import Any

import blosc2
import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from medseg.config import TaskConfig
from medseg.evaluation import evaluate_folder, find_best_configuration
from medseg.imaging import read_nifti
from medseg.nnunet import (
    load_checkpoint,
    plan_configurations,
    predict_validation,
    read_plans,
    train,
)
from medseg.nnunet.fold_network import FoldNetwork, load_fold
from medseg.nnunet.pairs import pair_folder
from medseg.nnunet.prediction import CasePredictor
from medseg.project import UserError
from tests.hippocampus import write_config
from tests.unit.nnunet.conftest import Trained
from tests.unit.nnunet.test_prediction import IGNORE, PLAIN, REGIONS, Setting, balanced_network


def cascaded(setting: Setting) -> dict[str, Any]:
    """Its plans, with a coarse first stage; both stages have the network ``tiny``."""
    plans = setting.plans
    configurations = plans["configurations"]
    configurations["low"] = {
        **copy.deepcopy(configurations["tiny"]),
        "spacing": [2 * step for step in setting.spacing],
        "next_stage": ["cascade"],
    }
    configurations["cascade"] = {"inherits_from": "tiny", "previous_stage": "low"}
    return plans


def predictors(
    setting: Setting, plans: dict[str, Any], stages: list[torch.nn.Module]
) -> tuple[CasePredictor, list[nnUNetPredictor]]:
    """Ours with both stages, and nnU-Net's of each."""
    ours = None
    theirs = []
    for name, network in zip(("low", "cascade"), stages, strict=True):
        ours = CasePredictor(
            [network],
            plans,
            setting.description,
            configuration=name,
            mirror_axes=(),
            device="cpu",
            previous=ours,
        )
        manager = PlansManager(plans)
        own = nnUNetPredictor(
            perform_everything_on_device=False,
            device=torch.device("cpu"),
            allow_tqdm=False,
            use_mirroring=False,
        )
        own.manual_initialization(
            network,
            manager,
            manager.get_configuration(name),
            [network.state_dict()],
            setting.description,
            "nnUNetTrainer",
            (),
        )
        theirs.append(own)
    assert ours is not None
    return ours, theirs


@pytest.mark.parametrize(
    "setting",
    [
        Setting(PLAIN, transpose=(2, 0, 1)),
        Setting(IGNORE, channels=2, image_spacing=(3.1, 0.8, 0.8)),
        Setting(REGIONS),
    ],
    ids=["plain", "anisotropic", "regions"],
)
def test_both_stages_are_nnunets(setting: Setting) -> None:
    plans = cascaded(setting)
    labels = len(PlansManager(plans).get_label_manager(setting.description).foreground_labels)
    wider = Setting(setting.dataset, channels=setting.channels + labels)
    networks = [balanced_network(setting), balanced_network(wider, seed=2)]
    ours, (low, high) = predictors(setting, plans, networks)
    image = setting.image()
    properties = {"spacing": list(setting.image_spacing)}
    first = low.predict_single_npy_array(image, dict(properties))
    expected = high.predict_single_npy_array(
        image, dict(properties), segmentation_previous_stage=first[None].astype(np.float32)
    )
    without = high.predict_single_npy_array(
        image, dict(properties), segmentation_previous_stage=np.zeros_like(first[None], np.float32)
    )
    found = ours.segment(image, setting.image_spacing)
    assert (found != expected).mean() < 1e-3
    assert (found != without).mean() > 10 * (found != expected).mean()  # the first stage counts
    assert len(np.unique(found)) > 1


def test_a_second_stage_alone_is_refused() -> None:
    setting = Setting()
    plans = cascaded(setting)
    ours, _ = predictors(setting, plans, [balanced_network(setting)] * 2)
    alone = CasePredictor(
        [balanced_network(Setting(channels=3))],
        plans,
        setting.description,
        configuration="cascade",
        mirror_axes=(),
        device="cpu",
    )
    with pytest.raises(UserError, match="needs the segmentation of low"):
        alone.segment(setting.image(), setting.image_spacing)
    assert ours.channels == alone.channels == 1


@pytest.fixture(scope="module")
def project(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> TaskConfig:
    """A first stage with five folds, copies of one, that has predicted for the second."""
    root = tmp_path_factory.mktemp("cascade") / "root"
    shutil.copytree(trained.config.root.path, root)
    config = write_config(root, configuration="tiny", num_epochs=1, num_processes=1)
    path = config.preprocessed_folder / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    plans["configurations"]["low"] = {
        **copy.deepcopy(plans["configurations"]["tiny"]),
        "spacing": [1.4, 1.4, 1.4],
        "data_identifier": "nnUNetPlans_low",
        "next_stage": ["cascade"],
    }
    plans["configurations"]["cascade"] = {"inherits_from": "tiny", "previous_stage": "low"}
    path.write_text(json.dumps(plans))
    assert plan_configurations(config, ["", "cascade"]) == (["tiny", "low"], ["cascade"])
    with pytest.raises(UserError, match="low has not predicted 6 of its 6 cases"):
        train(config.of(configuration="cascade"))
    first = config.of(configuration="low")
    train(first)
    for fold in range(1, 5):
        shutil.copytree(first.fold_folder(), first.of(fold=fold).fold_folder())
    for fold in range(5):
        predict_validation(first.of(fold=fold))
    return config


def test_the_second_stage_trains_and_validates(project: TaskConfig) -> None:
    second = project.of(configuration="cascade")
    _, dataset = read_plans(project)
    result = train(second)
    assert result.epochs == 1
    folder = predict_validation(second)
    assert list(folder.glob("*.nii.gz"))
    network, header = load_fold(second)
    assert header["init_args"]["configuration"] == "cascade"
    structures = len(dataset["labels"]) - 1
    first = next(weight for weight in network.state_dict().values() if weight.dim() == 5)
    assert first.shape[1] == 1 + structures

    # it sees what the first stage found, not nothing
    opened = FoldNetwork.open(second)
    assert opened.previous is not None
    case = sorted(folder.glob("*.nii.gz"))[0].name.removesuffix(".nii.gz")
    before, _ = opened.logits(case)
    path = opened.previous / f"{case}.b2nd"
    stored = blosc2.open(str(path))[:]
    assert stored.shape == before.shape[1:]
    path.unlink()
    blosc2.asarray((stored + 1) % 3, urlpath=str(path))
    after, _ = opened.logits(case)
    assert not torch.equal(before, after)
    path.unlink()
    blosc2.asarray(stored, urlpath=str(path))


def test_predictions_are_those_of_nnunets_validation(project: TaskConfig) -> None:
    """The same grid and labels as nnU-Net's own function writes for the next stage."""
    from nnunetv2.inference.export_prediction import resample_and_save
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    first = project.of(configuration="low")
    network = FoldNetwork.open(first)
    target = first.results_folder / "predicted_next_stage" / "cascade"
    case = sorted((first.fold_folder() / "validation").glob("*.nii.gz"))[0].name[:-7]
    logits, properties = network.logits(case)
    cases = project.preprocessed_folder / "nnUNetPlans_3d_fullres"
    shape = nnUNetDatasetBlosc2(str(cases), [case]).load_case(case)[0].shape[1:]
    expected = project.root.path / "expected"
    resample_and_save(
        logits,
        list(shape),
        str(expected),
        network.plans,
        network.configuration,
        properties,
        network.dataset_json,
        1,
    )
    found = blosc2.open(str(target / f"{case}.b2nd"))[:]
    assert np.array_equal(found, blosc2.open(f"{expected}.b2nd")[:])


def test_a_first_stage_trained_anew_lets_the_second_start_anew(project: TaskConfig) -> None:
    second, first = project.of(configuration="cascade"), project.of(configuration="low")
    path = first.fold_folder() / "checkpoint_final.pth"
    checkpoint = load_checkpoint(path)
    for weight in checkpoint["network_weights"].values():
        weight *= 1.01
    torch.save(checkpoint, path)
    predict_validation(first)
    train(second)
    assert list((second.results_folder / "superseded").glob("*"))


def test_the_best_of_two_configurations_and_their_pair(project: TaskConfig) -> None:
    shutil.copytree(project.fold_folder(), project.of(fold=1).fold_folder())
    names, folds = ["", "low"], [0, 1]
    records = project.of(fold=1).fold_folder() / "validation" / ".medseg"
    if records.is_dir():
        shutil.rmtree(records)
    with pytest.raises(UserError, match="fold 1 of tiny is not validated with its final"):
        find_best_configuration(project, names, folds)
    for fold in folds:
        for name in names:
            predict_validation(project.of(configuration=name, fold=fold))
    choice, path = find_best_configuration(project, names, folds)
    assert path.is_file()
    found = {tuple(row["configurations"]): row["structures"] for row in choice.candidates}
    assert list(found) == [("tiny",), ("low",), ("tiny", "low")]

    # each alone: what its validations are measured at; the pair: the mean of both probabilities
    titles = project.label_set.names
    references = project.preprocessed_folder / "gt_segmentations"
    for names_, structures in found.items():
        if len(names_) == 1:
            folders = [
                project.of(configuration=names_[0], fold=fold).fold_folder() / "validation"
                for fold in folds
            ]
        else:
            folders = [pair_folder(project, ("tiny", "low"))]
        entries = [
            case["metrics"]
            for folder in folders
            for case in evaluate_folder(folder, references, project.label_set)["metric_per_case"]
        ]
        for key, title in titles.items():
            values = [entry[key]["Dice"] for entry in entries if entry[key]["Dice"] is not None]
            assert structures[title] == pytest.approx(np.mean(values))
    best = max(choice.candidates, key=lambda row: row["dice"])
    assert list(choice.configurations) == best["configurations"]

    fold = project.of(fold=0)
    case = sorted((fold.fold_folder() / "validation").glob("*.nii.gz"))[0].name
    networks = [FoldNetwork.open(fold.of(configuration=name)) for name in ("tiny", "low")]
    both = [
        np.concatenate(
            [
                block.probabilities
                for block in network.predictor.exporter.blocks(*network.logits(case[:-7]))
            ],
            axis=1,
        )
        for network in networks
    ]
    labels = read_nifti(pair_folder(project, ("tiny", "low")) / case).array.T
    assert (labels != np.argmax(sum(both), axis=0)).mean() < 1e-4

    before = {p: p.stat().st_mtime_ns for p in pair_folder(project, ("tiny", "low")).glob("*.gz")}
    assert find_best_configuration(project, names, folds) == (choice, path)
    assert before == {p: p.stat().st_mtime_ns for p in before}
