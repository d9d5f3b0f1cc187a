"""A training that starts from a model: what it takes, what it leaves alone, what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from medseg.config import TaskConfig, finetuning_config
from medseg.nnunet import (
    TrainedFold,
    environment,
    load_checkpoint,
    plan_and_preprocess,
    prepare_dataset,
    train,
)
from medseg.nnunet.pretrained import adopted_plans, first_weights, read_pretrained
from medseg.project import UserError
from tests.hippocampus import LABELS, write_config
from tests.volumes import contents

from .conftest import Trained, copy_root

TIP = {"background": 0, "Tip": 1, "Anterior": 2}
"""Labels of which the model has one, at another place."""


@pytest.fixture(scope="session")
def model(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained fold's checkpoint, with what describes it beside it."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("fold_0/checkpoint_final.pth", "plans.json", "dataset.json"):
        shutil.copy(trained.config.results_folder / name, folder)
    return folder / "checkpoint_final.pth"


def tuned(root: Path, **fields: Any) -> TaskConfig:
    """A short fine-tuning from ``models/checkpoint_final.pth``."""
    settings = {
        "configuration": "tiny",
        "pretrained_weights": "models/checkpoint_final.pth",
        "num_epochs": 2,
        **fields,
    }
    return write_config(root, **settings)


@pytest.fixture(scope="session")
def adopted(preprocessed_root: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with the models, preprocessed with their plans; do not change it, copy it."""
    folder = copy_root(preprocessed_root, tmp_path_factory.mktemp("adopted") / "root")
    shutil.copytree(model.parent, folder / "models")
    shutil.copy(folder / "mlflow.db", folder / "empty.db")
    before = (folder / PLANS).read_bytes()
    made = plan_and_preprocess(tuned(folder))
    assert made.plans_name == "PretrainedPlans"
    assert (folder / PLANS).with_name("PretrainedPlans_3d_fullres").is_dir()
    assert (folder / PLANS).read_bytes() == before
    return folder


@pytest.fixture
def root(adopted: Path, tmp_path: Path) -> Path:
    """A data root to fine-tune in."""
    return copy_root(adopted, tmp_path / "root")


PLANS = "nnUNet/nnUNet_preprocessed/Dataset004_Hippocampus/nnUNetPlans.json"


def weights(path: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_checkpoint(path)["network_weights"]
    return found


def own(model: Path) -> dict[str, torch.Tensor]:
    """Weights as a new network has them."""
    return {name: torch.full_like(value, 7) for name, value in weights(model).items()}


# --- what it takes ---


def test_the_plans_are_those_that_nnunets_own_command_makes(root: Path) -> None:
    from nnunetv2.experiment_planning.plans_for_pretraining.move_plans_between_datasets import (
        move_plans_between_datasets,
    )

    config = tuned(root, dataset_name_or_id="5", experiment_name="Other")
    prepare_dataset(config)
    config.preprocessed_folder.mkdir()
    with environment(config):
        move_plans_between_datasets(4, 5, "nnUNetPlans", config.nnunet_plans_name)
    theirs = json.loads((config.preprocessed_folder / "PretrainedPlans.json").read_text())
    assert adopted_plans(config, read_pretrained(config)) == theirs


def test_labels_of_the_same_name_keep_their_heads(root: Path, model: Path) -> None:
    config = tuned(root, labels=TIP, new_heads=True)
    before = weights(model)
    found = first_weights(config, own(model))
    for name, value in found.items():
        if ".seg_layers." in name:
            assert torch.equal(value[0], before[name][0]), "background"
            assert torch.equal(value[2], before[name][1]), "Anterior"
            assert (value[1] == 7).all(), "Tip"
        else:
            assert torch.equal(value, before[name])
    more = tuned(root, labels=LABELS | {"Tip": 3}, new_heads=True)
    wider = {
        name: torch.full((4, *value.shape[1:]), 7.0) if ".seg_layers." in name else value
        for name, value in own(model).items()
    }
    for name, value in first_weights(more, wider).items():
        assert torch.equal(value[:3], before[name][:3])
        assert ".seg_layers." not in name or (value[3:] == 7).all()


def test_it_starts_from_the_model_in_a_place_of_its_own(root: Path) -> None:
    config = tuned(root, initial_lr=1e-9)
    result = train(config)
    assert config.fold_folder().parent.name == "nnUNetTrainer__PretrainedPlans__tiny"
    start, end = (
        weights(path / "checkpoint_final.pth") for path in (root / "models", config.fold_folder())
    )
    assert all(torch.allclose(start[name], end[name], atol=1e-6) for name in start)

    # the rate falls over the epochs of this training
    logged = load_checkpoint(config.fold_folder() / "checkpoint_final.pth")["logging"]
    assert logged["lrs"] == pytest.approx([1e-9, 1e-9 * 0.5**0.9])
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    params = client.get_run(result.run_id).data.params
    assert params["hash.weights"] == TrainedFold(config).origin
    assert params["trainer.freeze_encoder"] == "False"


def test_a_frozen_encoder_stays_and_the_rest_learns(root: Path) -> None:
    config = tuned(root, freeze_encoder=True, initial_lr=0.01, num_epochs=1)
    train(config)
    start, end = (
        weights(path / "checkpoint_final.pth") for path in (root / "models", config.fold_folder())
    )
    frozen = {name for name in start if name.startswith("encoder.")}
    assert frozen
    changed = {name for name in start if not torch.equal(start[name], end[name])}
    assert not changed & frozen
    assert any(".seg_layers." in name for name in changed)
    assert TrainedFold(config).settings["freeze_encoder"] is True


# --- again ---


def test_the_same_command_does_nothing_and_another_model_starts_anew(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tuned(root, num_epochs=1)
    first = train(config)
    capsys.readouterr()
    plan_and_preprocess(config)
    assert train(config) == first
    assert capsys.readouterr().out.splitlines() == [
        "medseg: tiny is preprocessed already",
        "medseg: fold 0 is trained already",
    ]
    # promoted, the result takes the model's place: the same command is still the same
    final = config.fold_folder() / "checkpoint_final.pth"
    shutil.copy(final, root / "models" / "checkpoint_final.pth")
    plan_and_preprocess(config)
    assert train(config) == first
    # with other cases it goes on from there
    splits = config.preprocessed_folder / "splits_final.json"
    splits.write_text(json.dumps(json.loads(splits.read_text())[::-1]))
    origin = TrainedFold(config).origin
    second = train(config)
    assert second.run_id != first.run_id
    assert TrainedFold(config).origin != origin
    assert train(config) == second

    torch.save({"network_weights": weights(final)}, root / "models" / "model.pt")
    capsys.readouterr()
    train(tuned(root, num_epochs=1, pretrained_weights="models/model.pt"))
    assert "the model that it starts from has changed" in capsys.readouterr().out
    assert len(list((config.results_folder / "superseded").iterdir())) == 2


# --- what is refused ---


def refuses(config: TaskConfig, message: str) -> None:
    before = contents(config.preprocessed_folder)
    with pytest.raises(UserError, match=message):
        plan_and_preprocess(config)
    assert contents(config.preprocessed_folder) == before


def test_models_that_do_not_fit(root: Path) -> None:
    refuses(tuned(root, pretrained_weights="models/none.ts"), "none.ts does not exist: name a mode")
    refuses(tuned(root, modality_list=["CT"]), r"takes MRI, the task has CT: .*modality_list: \[M")
    refuses(tuned(root, configuration="3d_fullres"), r"was trained for \(tiny\): set configuration")
    refuses(tuned(root, nnunet_plans_name="nnUNetPlans", configuration="tiny"), "plans of the data")
    with pytest.raises(UserError, match=r"segments background \(0\), anterior \(1\), posterior"):
        read_pretrained(tuned(root, labels=TIP))
    whole = (root / "models" / "checkpoint_final.pth").read_bytes()
    (root / "models" / "last.ckpt").write_bytes(whole[: len(whole) // 2])
    refuses(tuned(root, pretrained_weights="models/last.ckpt"), "truncated")


def test_weights_of_another_network(root: Path, model: Path) -> None:
    expected = own(model)
    first, second, third = list(expected)[:3]
    other = {name: value for name, value in expected.items() if name != first}
    other[second] = torch.zeros(3, 2)
    other["decoder.attention.weight"] = torch.zeros(1)
    torch.save({"state_dict": other}, root / "models" / "other.ckpt")
    with pytest.raises(UserError) as refused:
        first_weights(tuned(root, pretrained_weights="models/other.ckpt"), expected)
    message = str(refused.value)
    assert f"it lacks {first}; it has beside decoder.attention.weight" in message
    assert f"of other shapes are {second} (3×2, not " in message
    assert third not in message


def test_plans_of_a_model_are_not_planned_over(root: Path) -> None:
    with pytest.raises(UserError, match="are the plans of a model: choose another name"):
        plan_and_preprocess(write_config(root, nnunet_plans_name="PretrainedPlans"))


def test_a_model_of_other_regions() -> None:
    from medseg.config import Labels
    from medseg.nnunet.pretrained import _heads, _names

    regions = {"background": 0, "whole": [1, 2], "core": 2}
    assert _names(_heads(Labels.of(regions, [1, 2]))) == ["whole", "core"]
    turned = {"background": 0, "core": 2, "whole": [1, 2]}
    assert _heads(Labels.of(regions, [1, 2])) != _heads(Labels.of(turned, [2, 1]))


# --- the config of a fine-tuning ---


def test_a_task_becomes_a_fine_tuning(root: Path) -> None:
    task = write_config(root, num_epochs=1000, initial_lr=0.01, seed=7)
    with pytest.raises(
        UserError, match=r"nothing says which model .* pretrained_weights in config"
    ):
        finetuning_config(task)
    config = finetuning_config(task, weights="models/model.ts", freeze_encoder=True)
    assert config.path.name == "config_finetune.yaml"
    assert (config.num_epochs, config.initial_lr) == (50, 1e-3)
    assert (config.nnunet_plans_name, config.seed) == ("PretrainedPlans", 7)
    assert (config.freeze_encoder, config.new_heads) == (True, False)
    assert task.path.read_text() == (root / "config.yaml").read_text()

    assert finetuning_config(config) is config
    longer = finetuning_config(task, weights="models/model.ts", epochs=9, initial_lr=0.1)
    assert (longer.num_epochs, longer.initial_lr, longer.freeze_encoder) == (9, 0.1, False)
    with pytest.raises(UserError, match="num_epochs"):
        finetuning_config(task, weights="models/model.ts", epochs=-1)
