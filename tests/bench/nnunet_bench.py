"""Preprocessing and training against nnU-Net's own, on the same data.

    ./build.sh bench nnunet [--dataset DIR] [--cases 10] [--rounds 3] [--steps 10] [--epochs 5]

``DIR`` is a dataset in the Decathlon layout, by default the demo's phantoms. Both sides run by
turns, each from a process of its own, and the medians are compared; the ratio is ours to nnU-Net's.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import yaml

from medseg.config import TaskConfig, load_config
from medseg.nnunet import (
    environment,
    load_checkpoint,
    plan_and_preprocess,
    prepare_dataset,
    train,
)
from medseg.project import DataRoot
from tests.bench import project

MODULE = "tests.bench.nnunet_bench"
EPOCHS = 6
ONE_STEP = {"iterations_per_epoch": 1, "val_iterations_per_epoch": 1}


def make_root(folder: Path, dataset: Path, cases: int, **fields: Any) -> TaskConfig:
    """A data root with the first cases of a Decathlon dataset, prepared for nnU-Net."""
    names = sorted(path.name for path in (dataset / "imagesTr").glob("[!.]*.nii.gz"))[:cases]
    for part in ("imagesTr", "labelsTr"):
        (folder / "NIFTI" / part).mkdir(parents=True)
        for name in names:
            shutil.copy(dataset / part / name, folder / "NIFTI" / part / name)
    shutil.copy(dataset / "dataset.json", folder / "NIFTI" / "dataset.json")
    labels = json.loads((dataset / "dataset.json").read_text())["labels"]
    content = {
        "data_dir": "NIFTI",
        "dataset_format": "decathlon",
        "dataset_name_or_id": "4",
        "experiment_name": "Bench",
        "labels": {name: int(value) for value, name in labels.items()},
        "bundle_config": {"bundle_root": "bundle"},
        **fields,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    config = load_config("config.yaml", DataRoot.at(folder))
    prepare_dataset(config)
    return config


def variables(config: TaskConfig) -> dict[str, str]:
    """The environment of nnU-Net's own commands."""
    base = config.nnunet_folder
    return {
        **os.environ,
        "MEDSEG_DATA_ROOT": str(config.root.path),
        "nnUNet_raw": str(base / "nnUNet_raw_data_base"),
        "nnUNet_preprocessed": str(base / "nnUNet_preprocessed"),
        "nnUNet_results": str(base / "nnUNet_trained_models"),
    }


def timed(command: list[str], config: TaskConfig) -> float:
    """Wall time of a command, in seconds."""
    started = time.perf_counter()
    subprocess.run(command, check=True, env=variables(config), stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def alternate(rounds: int, sides: dict[str, Callable[[], float]]) -> dict[str, float]:
    """Medians of both sides, run in turn and in changing order."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for index in range(rounds):
        for name in list(sides)[:: 1 if index % 2 == 0 else -1]:
            times[name].append(sides[name]())
    return {name: statistics.median(values) for name, values in times.items()}


def preprocessing(config: TaskConfig, rounds: int) -> dict[str, float]:
    """``plan_and_preprocess`` against ``nnUNetv2_plan_and_preprocess``, in seconds."""
    processes = str(config.num_processes or os.cpu_count())

    def fresh(command: list[str]) -> float:
        shutil.rmtree(config.preprocessed_folder, ignore_errors=True)
        return timed(command, config)

    theirs = str(Path(sys.executable).with_name("nnUNetv2_plan_and_preprocess"))
    options = f"-d {config.dataset_id} -c {config.configuration} -npfp {processes} -np {processes}"
    return alternate(
        rounds,
        {
            "nnU-Net": lambda: fresh([theirs, *options.split()]),
            "medseg": lambda: fresh([sys.executable, "-m", MODULE, "--stage", config.path.name]),
        },
    )


def in_turn(config: TaskConfig, rounds: int, *what: str) -> dict[str, float]:
    """Runs one measurement on both sides, each time in a process of its own, in seconds."""

    def one(side: str) -> float:
        command = [sys.executable, "-m", MODULE, "--measure", config.path.name, side, *what]
        done = subprocess.run(
            command, check=True, env=variables(config), stdout=subprocess.PIPE, text=True
        )
        return float(done.stdout.split()[-1])

    return alternate(rounds, {"nnU-Net": lambda: one("theirs"), "medseg": lambda: one("ours")})


@contextmanager
def trainer_of(config: TaskConfig, side: str) -> Iterator[Any]:
    """The trainer of one side, with its own way to augment."""
    from medseg.nnunet.devices import augmentation_processes, threads

    ours = side == "ours"
    workers = {"nnUNet_n_proc_DA": str(augmentation_processes(config))} if ours else {}
    with environment(config, **workers):
        from medseg.nnunet.trainer import make_trainer
        from medseg.nnunet.trainer_classes import find_trainer_class

        trainer = make_trainer(config)
        if not ours:
            trainer = find_trainer_class(config.trainer_class_name)(**trainer.my_init_kwargs)
        with threads(trainer.device.type):
            yield trainer


def step(config: TaskConfig, side: str, steps: int) -> float:
    """Median seconds of a training step, batch by batch with augmentation as on that side."""
    import torch

    with trainer_of(config, side) as trainer:
        trainer.initialize()
        trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()
        trainer.network.train()
        times = []
        for _ in range(steps + 2):
            started = time.perf_counter()
            trainer.train_step(next(trainer.dataloader_train))
            if trainer.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        for loader in (trainer.dataloader_train, trainer.dataloader_val):
            getattr(loader, "_finish", lambda: None)()
    return statistics.median(times[2:])


def epoch(config: TaskConfig, side: str, epochs: int) -> float:
    """Seconds an epoch with a single step: what is left is logging, tracking and checkpoints."""
    if side == "ours":
        shutil.rmtree(config.results_folder, ignore_errors=True)
        started = time.perf_counter()
        train(config)
        return (time.perf_counter() - started) / epochs
    with trainer_of(config, side) as trainer:
        trainer.num_epochs = epochs
        trainer.num_iterations_per_epoch = trainer.num_val_iterations_per_epoch = 1
        started = time.perf_counter()
        trainer.run_training()
        return (time.perf_counter() - started) / epochs


def losses(config: TaskConfig, **changes: Any) -> list[float]:
    """The training losses of a short training with other settings."""
    content = yaml.safe_load(config.path.read_text()) | changes
    config.path.write_text(yaml.safe_dump(content, sort_keys=False))
    changed = load_config(config.path.name, config.root)
    shutil.rmtree(changed.results_folder, ignore_errors=True)
    with redirect_stdout(io.StringIO()):
        train(changed)
    checkpoint = load_checkpoint(changed.fold_folder() / "checkpoint_final.pth")
    return [float(value) for value in checkpoint["logging"]["train_losses"]]


def loss_curves(config: TaskConfig, epochs: int) -> None:
    """bfloat16 against float32 from one seed, beside float32 from two seeds."""
    short = {"num_epochs": epochs, "iterations_per_epoch": 10, "val_iterations_per_epoch": 1}
    single = losses(config, **short, precision="float32")
    half = losses(config, **short, precision="bfloat16")
    other = losses(config, **short, precision="float32", seed=config.seed + 1000)

    def apart(one: list[float], two: list[float]) -> float:
        return statistics.mean(abs(a - b) for a, b in zip(one, two, strict=True))

    print(
        f"loss curves of {epochs} epochs: bfloat16 and float32 are {apart(single, half):.5f} "
        f"apart on average, two float32 trainings from different seeds {apart(single, other):.5f}"
    )


def main() -> None:
    """Runs both comparisons and prints seconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", type=Path)
    parser.add_argument("--cases", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=5, help="of each loss curve")
    parser.add_argument("--only", choices=["preprocessing", "training"])
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stage:
        plan_and_preprocess(load_config(given.stage))
        return
    if given.measure:
        name, side, what, count = given.measure
        measure = {"step": step, "epoch": epoch}[what]
        print(measure(load_config(name), side, int(count)))
        return
    with tempfile.TemporaryDirectory() as folder:
        data = given.dataset or project.dataset()
        config = make_root(Path(folder), data, given.cases, num_epochs=EPOCHS, **ONE_STEP)
        if given.only != "training":
            show("preprocessing", preprocessing(config, given.rounds), "1.03")
        if given.only != "preprocessing":
            plan_and_preprocess(config)
            steps = in_turn(config, given.rounds, "step", str(given.steps))
            show("training step", steps, "1.02 on a GPU, 0.6 on a CPU with bfloat16 units")
            epochs = in_turn(config, given.rounds, "epoch", str(EPOCHS))
            show("an epoch of one step", epochs, "1.02")
            loss_curves(config, given.epochs)


def show(what: str, times: dict[str, float], target: str) -> None:
    """Prints one comparison."""
    ratio = times["medseg"] / times["nnU-Net"]
    print(
        f"{what}: medseg {times['medseg']:.2f} s, nnU-Net {times['nnU-Net']:.2f} s, ratio "
        f"{ratio:.3f} (target: at most {target})"
    )


if __name__ == "__main__":
    main()
