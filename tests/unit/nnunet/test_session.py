"""A training session: some epochs at a time, other weights in between, resumed however it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from medseg.config import TaskConfig
from medseg.nnunet import TrainedFold, TrainingSession, load_checkpoint, train
from medseg.project import UserError
from tests.hippocampus import write_config

Weights = dict[str, torch.Tensor]


def task(root: Path, epochs: int) -> TaskConfig:
    return write_config(root, configuration="tiny", num_epochs=epochs, iterations_per_epoch=1)


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def final(config: TaskConfig) -> dict[str, Any]:
    return dict(load_checkpoint(TrainedFold(config).final))


def checkpoints(config: TaskConfig) -> list[str]:
    return sorted(path.name for path in config.fold_folder().glob("checkpoint_*.pth"))


def test_sessions_one_after_the_other_are_one_training(own_root: Path) -> None:
    config = task(own_root, 3)
    result = train(config)
    expected = final(config)
    config.results_folder.rename(own_root / "whole")

    with TrainingSession.open(config) as session:
        session.train(1)
        assert not session.finished
        session.train(1)
        with pytest.raises(UserError, match="already running"):
            TrainingSession.open(config)
    first = session.result
    session = TrainingSession.open(config)
    session.train(99)
    assert session.finished
    session.close()

    found = final(config)
    assert same(found["network_weights"], expected["network_weights"])
    for key in ("train_losses", "val_losses", "mean_fg_dice", "lrs"):
        assert found["logging"][key] == expected["logging"][key]
    momenta = [state["optimizer_state"]["state"].values() for state in (found, expected)]
    for one, other in zip(*momenta, strict=True):
        assert torch.equal(one["momentum_buffer"], other["momentum_buffer"])
    assert checkpoints(config) == ["checkpoint_best.pth", "checkpoint_final.pth"]
    assert (session.result.epochs, session.result.measures) == (3, result.measures)
    assert first.run_id == session.result.run_id != ""  # one run in MLflow
    assert train(config) == session.result  # it is finished


def test_the_weights_that_are_given_are_used(own_root: Path) -> None:
    config = task(own_root, 3)
    with TrainingSession.open(config) as session:
        fresh = session.weights
        session.train(1)
        trained = session.weights
        assert not same(trained, fresh)
        assert "checkpoint_best.pth" in checkpoints(config)
        halved = {name: value / 2 for name, value in trained.items()}
        session.load({name: value.numpy() for name, value in halved.items()})
        assert same(session.weights, halved)
    with TrainingSession.open(config) as session:  # closing kept them
        assert len(session.history) == 1
        assert same(session.weights, halved)
        session.train(1)
        after = session.weights
    config.results_folder.rename(own_root / "halved")

    with TrainingSession.open(config) as session:
        session.train(1)
        assert same(session.weights, trained)
        session.load(halved)
        session.load(trained)  # the last ones count
        session.train(1)
        plain = session.weights
    assert not same(plain, after)
    config.results_folder.rename(own_root / "plain")
    with TrainingSession.open(config) as session:
        session.train(2)
        assert same(session.weights, plain)


def test_a_finished_fold_takes_final_weights(own_root: Path) -> None:
    config = task(own_root, 1)
    with TrainingSession.open(config) as session:
        session.train()
        average = {name: value * 0.9 for name, value in session.weights.items()}
        session.load(average)
    assert same(final(config)["network_weights"], average)
    with TrainingSession.open(config) as session:
        assert session.finished
        session.train(1)  # nothing is left
        assert same(session.weights, average)
        again = {name: value * 0.9 for name, value in average.items()}
        session.load(again)
    content = final(config)
    assert same(content["network_weights"], again)
    assert content["current_epoch"] == 1
    assert checkpoints(config) == ["checkpoint_best.pth", "checkpoint_final.pth"]
    assert train(config) == session.result
    assert same(final(config)["network_weights"], again)


def test_however_it_ends_it_can_be_resumed(
    own_root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    config = task(own_root, 3)
    TrainingSession.open(config).close()
    assert checkpoints(config) == []
    with pytest.raises(SystemExit), TrainingSession.open(config) as session:
        session.train(2)
        # already on the disk, were the process to die now
        assert max(load_checkpoint(path)["current_epoch"] for path in saved(config)) == 2
        kept = session.weights
        raise SystemExit(143)
    with TrainingSession.open(config) as session:
        assert len(session.history) == 2
        assert same(session.weights, kept)

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(nnUNetTrainer, "on_train_epoch_end", interrupt)
            session.train()
        with pytest.raises(RuntimeError, match="is closed"):
            session.train()
    with TrainingSession.open(config) as session:  # the fold is free, the third epoch undone
        assert same(session.weights, kept)
        session.train()
    assert session.result.epochs == 3
    assert "epochs 3 to 3 on cpu" in capsys.readouterr().out


def saved(config: TaskConfig) -> list[Path]:
    return [config.fold_folder() / name for name in checkpoints(config)]


def test_what_a_session_refuses(own_root: Path) -> None:
    config = task(own_root, 2)
    with TrainingSession.open(config) as session:
        weights = session.weights
        name = next(iter(weights))
        with pytest.raises(UserError, match=f"another network: its {name} has the shape of nothi"):
            session.load({key: value for key, value in weights.items() if key != name})
        with pytest.raises(UserError, match=rf"its {name} has the shape \(1,\), here it is \("):
            session.load({**weights, name: torch.zeros(1)})
        assert same(session.weights, weights)
        with pytest.raises(ValueError, match="epochs must be at least 1"):
            session.train(0)
    with pytest.raises(RuntimeError, match="is closed: open another"):
        session.load(weights)
