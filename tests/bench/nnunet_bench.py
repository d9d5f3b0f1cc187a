"""Preprocessing and training against nnU-Net's own, on the same data.

    ./build.sh bench nnunet [--dataset DIR] [--cases 10] [--rounds 3] [--steps 10]

``DIR`` is a dataset in the Decathlon layout, by default the demo's phantoms. Both sides run by
turns, each from a process of its own, and the medians are compared; the ratio is ours to nnU-Net's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from medseg.config import TaskConfig, load_config
from medseg.nnunet import environment, plan_and_preprocess, prepare_dataset
from medseg.project import DataRoot
from tests.bench import project


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
            "medseg": lambda: fresh([sys.executable, __file__, "--stage", config.path.name]),
        },
    )


def training(config: TaskConfig, rounds: int, steps: int) -> dict[str, float]:
    """A training step of our trainer against one of nnU-Net's, on the same batch, in seconds."""
    plan_and_preprocess(config)
    return alternate(
        rounds,
        {
            name: lambda side=side: float(
                subprocess.run(
                    [sys.executable, __file__, "--step", config.path.name, side, str(steps)],
                    check=True,
                    env=variables(config),
                    stdout=subprocess.PIPE,
                    text=True,
                ).stdout.split()[-1]
            )
            for name, side in (("nnU-Net", "theirs"), ("medseg", "ours"))
        },
    )


def step(config: TaskConfig, side: str, steps: int) -> float:
    """Median seconds of a training step, batch by batch with augmentation as on that side."""
    import torch

    ours = side == "ours"
    from medseg.nnunet.training import _augmentation_processes, _threads

    workers = {"nnUNet_n_proc_DA": str(_augmentation_processes(config))} if ours else {}
    with environment(config, **workers):
        from medseg.nnunet.trainer import find_trainer_class, make_trainer

        trainer = make_trainer(config, 0)
        if not ours:
            trainer = find_trainer_class(config.trainer_class_name)(
                **{name: trainer.my_init_kwargs[name] for name in trainer.my_init_kwargs}
            )
        with _threads(trainer.device.type):
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


def main() -> None:
    """Runs both comparisons and prints seconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", type=Path)
    parser.add_argument("--cases", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--only", choices=["preprocessing", "training"])
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--step", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stage:
        plan_and_preprocess(load_config(given.stage))
        return
    if given.step:
        print(step(load_config(given.step[0]), given.step[1], int(given.step[2])))
        return
    with tempfile.TemporaryDirectory() as folder:
        config = make_root(Path(folder), given.dataset or project.dataset(), given.cases)
        if given.only != "training":
            show("preprocessing", preprocessing(config, given.rounds), "1.03")
        if given.only != "preprocessing":
            times = training(config, given.rounds, given.steps)
            show("training step", times, "1.02 on a GPU, 0.6 on a CPU with bfloat16 units")


def show(what: str, times: dict[str, float], target: str) -> None:
    """Prints one comparison."""
    ratio = times["medseg"] / times["nnU-Net"]
    print(
        f"{what}: medseg {times['medseg']:.2f} s, nnU-Net {times['nnU-Net']:.2f} s, ratio "
        f"{ratio:.3f} (target: at most {target})"
    )


if __name__ == "__main__":
    main()
