"""Fine-tuning from a packaged model against training from scratch, on the same cases.

    ./build.sh bench finetune [--dataset DIR] [--cases 24] [--seeds 3] [--steps 8] [--pretrain 60]

A first training sees one half of the cases of ``DIR`` (Decathlon layout, by default the demo's
phantoms) and is packaged as ``model.ts``. Both sides then train on the other half, from each seed:
from scratch for 30 epochs, from that model for 10. Compared are the mean Dice on validation cases.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from medseg.bundle import convert_pt_to_ts, export_checkpoint, model_file, prepare_bundle
from medseg.config import TaskConfig, load_config
from medseg.evaluation import evaluate
from medseg.nnunet import plan_and_preprocess, predict_validation, train
from tests.bench import project
from tests.bench.nnunet_bench import make_root

SCRATCH, TUNED = 30, 10
"""Epochs of the two sides."""

MODEL = "model.ts"


def halves(folder: Path, dataset: Path, cases: int) -> tuple[Path, Path]:
    """Two datasets of every other case each."""
    names = sorted(path.name for path in (dataset / "imagesTr").glob("[!.]*.nii.gz"))[:cases]
    for part, start in (("one", 0), ("other", 1)):
        for kind in ("imagesTr", "labelsTr"):
            (folder / part / kind).mkdir(parents=True)
            for name in names[start::2]:
                shutil.copy(dataset / kind / name, folder / part / kind / name)
        shutil.copy(dataset / "dataset.json", folder / part / "dataset.json")
    return folder / "one", folder / "other"


def planned(folder: Path, dataset: Path, **fields: Any) -> TaskConfig:
    """A task with a small network, which learns in seconds what the whole one takes minutes for."""
    config = make_root(folder, dataset, len(list((dataset / "imagesTr").iterdir())), **fields)
    plan_and_preprocess(config)
    path = config.preprocessed_folder / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    architecture = copy.deepcopy(plans["configurations"][config.configuration]["architecture"])
    arguments = architecture["arch_kwargs"]
    arguments["features_per_stage"] = [each // 4 for each in arguments["features_per_stage"]]
    plans["configurations"]["small"] = {
        "inherits_from": config.configuration,
        "architecture": architecture,
        "batch_size": 2,
    }
    path.write_text(json.dumps(plans))
    return changed(config, configuration="small")


def changed(config: TaskConfig, **fields: Any) -> TaskConfig:
    """The task with other settings."""
    content = yaml.safe_load(config.path.read_text()) | fields
    config.path.write_text(yaml.safe_dump(content, sort_keys=False))
    return load_config(config.path.name, config.root)


def dice(config: TaskConfig) -> tuple[float, float]:
    """Trains and validates anew; the mean Dice of the cases, and the seconds of the training."""
    shutil.rmtree(config.results_folder, ignore_errors=True)
    with contextlib.redirect_stdout(io.StringIO()):
        plan_and_preprocess(config)
        started = time.perf_counter()
        train(config)
        seconds = time.perf_counter() - started
        predict_validation(config)
        return float(evaluate(config)["foreground_mean"]["Dice"] or 0), seconds


def main() -> None:
    """Runs the comparison and prints the Dice of every seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", type=Path)
    parser.add_argument("--cases", type=int, default=24, help="of which each half gets one half")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="of an epoch")
    parser.add_argument("--pretrain", type=int, default=60, help="epochs of the first training")
    given = parser.parse_args()
    short = {"iterations_per_epoch": given.steps, "val_iterations_per_epoch": 1}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        one, other = halves(folder, given.dataset or project.dataset(), given.cases)
        with contextlib.redirect_stdout(io.StringIO()):
            first = planned(folder / "a", one, **short, num_epochs=given.pretrain)
            task = planned(folder / "b", other, **short)
        print(f"first training, {given.pretrain} epochs: Dice {dice(first)[0]:.3f}", flush=True)
        with contextlib.redirect_stdout(io.StringIO()):
            prepare_bundle(first)
            export_checkpoint(first)
            convert_pt_to_ts(first)
        shutil.copy(model_file(first), task.root.path / MODEL)
        compare(task, given.seeds)


def compare(task: TaskConfig, seeds: int) -> None:
    """Both sides from each seed, in turn."""
    found: dict[str, list[tuple[float, float]]] = {"scratch": [], "tuned": []}
    for seed in range(1, seeds + 1):
        scratch = changed(task, seed=seed, num_epochs=SCRATCH)
        found["scratch"].append(dice(scratch))
        found["tuned"].append(
            dice(changed(task, seed=seed, num_epochs=TUNED, pretrained_weights=MODEL))
        )
        changed(task, pretrained_weights=None)
        (apart, slow), (near, quick) = found["scratch"][-1], found["tuned"][-1]
        print(
            f"seed {seed}: from scratch, {SCRATCH} epochs: Dice {apart:.3f} in {slow:.0f} s; "
            f"from the model, {TUNED} epochs: Dice {near:.3f} in {quick:.0f} s",
            flush=True,
        )
    means = {side: statistics.mean(value for value, _ in runs) for side, runs in found.items()}
    ratio = means["tuned"] / max(means["scratch"], 1e-9)
    print(
        f"fine-tuning for {TUNED} epochs against {SCRATCH} from scratch: Dice "
        f"{means['tuned']:.3f} against {means['scratch']:.3f}, ratio {ratio:.3f} (target: at "
        "least 1)"
    )


if __name__ == "__main__":
    main()
