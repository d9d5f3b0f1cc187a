"""What is on the disk of a training that is killed: whole, and no older than it may be."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import OrderedDict
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from medseg.nnunet import TrainedFold, keeping, load_checkpoint, train
from medseg.nnunet.checkpoints import LATEST
from medseg.nnunet.keeping import StateKeeper
from medseg.project import explain_os_error
from tests.hippocampus import write_config
from tests.volumes import Volume

# --- how often ---


class Clock:
    """Time that passes when it is told to; what is written takes the given work of a core."""

    def __init__(self, work: float) -> None:
        self.now = 1000.0
        self.work = work

    def monotonic(self) -> float:
        return self.now

    def thread_time(self) -> float:
        return self.work


@pytest.mark.parametrize(
    ("epoch", "work", "oldest", "share"),
    [
        (60.0, 1.3, 240.0, 0.01),  # a large network on a GPU
        (1.0, 0.02, 3.0, 0.01),
        (60.0, 30.0, 600.0, 0.06),  # so slow that the ten minutes decide
        (900.0, 1.3, 900.0, 0.002),  # no state within an epoch
    ],
)
def test_as_often_as_it_is_cheap_and_at_least_every_ten_minutes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    epoch: float,
    work: float,
    oldest: float,
    share: float,
) -> None:
    monkeypatch.setattr(keeping, "time", clock := Clock(work))
    path = tmp_path / LATEST
    keeper = StateKeeper(path, 600)
    keeper.begin()
    state = {"network_weights": {"w": torch.zeros(3)}}
    written: list[float] = []
    for _ in range(60):
        clock.now += epoch
        keeper.keep(state)
        path.unlink(missing_ok=True)
        keeper.write_if_due(epoch)
        keeper.settle()
        if path.exists():
            written.append(clock.now)
    times = [1000.0, *written]
    assert max(after - before for before, after in zip(times, written, strict=False)) <= oldest
    # the first writing comes before its price is known
    assert work * (len(written) - 1) <= share * (clock.now - 1000)


# --- what it holds ---


def test_a_copy_is_the_state_and_reuses_its_memory(tmp_path: Path) -> None:
    shared, log = torch.arange(6.0), [1.0]
    weights = OrderedDict({"encoder.w": shared, "decoder.encoder.w": shared.detach()})
    weights._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    state = {"network_weights": weights, "logging": {"loss": log}, "scaler": None, "size": (1, 2)}
    copy = keeping._Copy()
    for number in (1.0, 2.0):
        copy.take(state)
        twin = copy.content["network_weights"]["encoder.w"]
        where = twin.data_ptr()
        assert torch.equal(twin, shared)
        shared += 1
        log.append(number)
    assert where == copy.content["network_weights"]["decoder.encoder.w"].data_ptr()
    assert len(copy._tensors) == 1
    assert (shared - twin).unique().tolist() == [1.0]
    assert copy.content["logging"]["loss"] == [1.0, 1.0]
    assert copy.content["network_weights"]._metadata == {"": {"version": 1}}
    assert (copy.content["scaler"], copy.content["size"]) == (None, (1, 2))
    keeper = StateKeeper(tmp_path / LATEST, 600)
    for _ in range(3):
        keeper.keep(state)
    assert len(keeper._copies) == 1


def test_what_is_trained_is_the_same(own_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    monkeypatch.setattr(
        keeping._Writing, "start", lambda self: (written.append(1), super(type(self), self).start())
    )
    config = write_config(
        own_root,
        configuration="tiny",
        num_epochs=4,
        iterations_per_epoch=1,
        checkpoint_minutes=1e-6,
    )
    train(config)
    kept = dict(load_checkpoint(TrainedFold(config).final))
    assert written
    shutil.rmtree(config.results_folder)
    monkeypatch.setattr(StateKeeper, "write_if_due", lambda *_: None)
    train(config)
    plain = dict(load_checkpoint(TrainedFold(config).final))
    assert kept.keys() == plain.keys()
    for part in ("network_weights", "init_args", "_best_ema", "current_epoch", "trainer_name"):
        assert same(kept[part], plain[part]), part
    assert same(kept["optimizer_state"], plain["optimizer_state"])
    for content in (kept, plain):
        for name in ("epoch_start_timestamps", "epoch_end_timestamps"):
            del content["logging"][name]
    assert kept["logging"] == plain["logging"]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


# --- kills ---

LONGEST = 0.4  # s


def training(path: Path, report: int, end: Callable[[StateKeeper], None]) -> None:
    """A training of short epochs in a process of its own; tells when each one has ended."""
    keeper = StateKeeper(path, LONGEST)

    def terminate(*_: Any) -> None:
        raise SystemExit

    signal.signal(signal.SIGTERM, terminate)
    weights = torch.zeros(1_000_000)
    keeper.begin()
    try:
        for epoch in count(1):
            time.sleep(0.02)
            weights.fill_(epoch)
            keeper.keep({"network_weights": {"w": weights}, "current_epoch": epoch})
            os.write(report, f"{epoch} {time.monotonic()}\n".encode())
            keeper.write_if_due(0.02)
    finally:
        end(keeper)


def start(path: Path, end: Callable[[StateKeeper], None]) -> tuple[int, int]:
    """The process, and where it tells of its epochs."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            training(path, write, end)
        finally:
            os._exit(0)
    os.close(write)
    return pid, read


def told(read: int) -> dict[int, float]:
    with os.fdopen(read) as file:
        lines = [line.split() for line in file if line.endswith("\n")]
    return {int(epoch): float(when) for epoch, when in lines}


def check(path: Path) -> int:
    """The epoch of the state on the disk, which is whole."""
    content = load_checkpoint(path)
    epoch = int(content["current_epoch"])
    assert content["network_weights"]["w"].unique().tolist() == [float(epoch)]
    return epoch


def test_kill_at_any_moment_loses_no_more_than_allowed(tmp_path: Path) -> None:
    chance = random.Random(7)
    for number in range(6):
        path = tmp_path / f"{number}" / LATEST
        pid, read = start(path, lambda _keeper: None)
        time.sleep(2 * LONGEST + chance.random())
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        ended = told(read)
        # the machine that tests run on may be busy: half a second more
        assert killed - ended[check(path)] < LONGEST + 0.5


def test_sigterm_and_sigkill_soon_after_lose_nothing_that_was_written(tmp_path: Path) -> None:
    chance = random.Random(8)
    for number in range(4):
        path = tmp_path / f"{number}" / LATEST

        def slowly(keeper: StateKeeper, path: Path = path) -> None:
            keeper.save(path)
            time.sleep(10)  # whatever else a clean end would do

        pid, read = start(path, slowly)
        time.sleep(LONGEST + chance.random())
        while not path.exists():
            time.sleep(0.05)
        written = check(path)
        os.kill(pid, signal.SIGTERM)
        time.sleep(0.2)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert check(path) >= written
        assert check(path) <= max(told(read))


def test_told_to_end_while_the_state_is_copied(
    own_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(own_root, configuration="tiny", num_epochs=9, iterations_per_epoch=1)
    take, asked = keeping._Copy.take, []

    def interrupted(self: keeping._Copy, content: Any) -> None:
        asked.append(content["current_epoch"])
        if len(asked) == 2:
            self.content = {"network_weights": {}}  # half of it
            raise SystemExit(143)
        take(self, content)

    monkeypatch.setattr(keeping._Copy, "take", interrupted)
    with pytest.raises(SystemExit):
        train(config)
    content = load_checkpoint(config.fold_folder() / LATEST)
    assert content["current_epoch"] == asked[1]
    assert content["network_weights"]


# --- what fails ---


def test_a_volume_that_is_full_for_a_while(volume: Volume) -> None:
    path = volume.folder / LATEST
    keeper = StateKeeper(path, 1e-6)
    state = {"network_weights": {"w": torch.rand(1_000_000)}, "current_epoch": 1}
    keeper.keep(state)
    volume.leave(1 << 20)
    keeper.write_if_due(0)
    keeper.settle()
    assert "No space left on device" in keeper.problem()
    assert keeper.problem() == ""  # told once
    with pytest.raises(OSError) as error:
        keeper.save(path)
    assert "disk is full" in str(explain_os_error(error.value))
    assert list(volume.folder.iterdir()) == []
    volume.enlarge()
    keeper.write_if_due(0)
    keeper.settle()
    assert load_checkpoint(path)["current_epoch"] == 1
    assert keeper.problem() == ""


def test_an_unforeseen_error_does_not_end_the_training(tmp_path: Path) -> None:
    keeper = StateKeeper(tmp_path / LATEST, 1e-6)
    keeper.keep({"network_weights": SimpleNamespace(text=lambda: None)})  # cannot be pickled
    keeper.write_if_due(0)
    keeper.settle()
    assert "in " in keeper.problem()
