"""Fingerprint, plans and preprocessed cases, by nnU-Net's own classes."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from medseg.config import TaskConfig
from medseg.nnunet.paths import environment, processes
from medseg.nnunet.raw import ENDING, place, prepared, remove_others
from medseg.nnunet.workers import for_each_case
from medseg.project import Failures, Manifest, UserError, fingerprint, progress, write_json
from medseg.project.files import PARTIAL, disk_errors

PLANNERS = {
    "nnUNetResEncUNetMPlans": "nnUNetPlannerResEncM",
    "nnUNetResEncUNetLPlans": "nnUNetPlannerResEncL",
    "nnUNetResEncUNetXLPlans": "nnUNetPlannerResEncXL",
}
"""nnU-Net's presets by the name of their plans; other plans are made by ``ExperimentPlanner``."""


def plan_and_preprocess(config: TaskConfig) -> dict[str, Any]:
    """Extracts the dataset's fingerprint, plans, and preprocesses for one configuration.

    The same work as ``nnUNetv2_plan_and_preprocess -c <configuration>``, with the same files as
    its result, and the five-fold split (``splits_final.json``) that nnU-Net would make when it
    trains. What is finished is not repeated: plans are made once for a dataset, so a configuration
    that the user adds to them stays, and after a kill only the missing cases are preprocessed.

    Args:
        config: The task's config.

    Returns:
        ``cases``, ``failed``, ``configuration``, ``plans_name``, ``plans_hash``, ``dataset_hash``,
        ``patch_size`` (voxels), ``spacing`` (mm) (both in nnU-Net's axis order), ``batch_size``,
        ``normalization``, ``preprocessed_folder`` (relative to the data root).

    Raises:
        UserError: The dataset is not prepared; the plans have no such configuration (the message
            names those they have); a split of the user's own names cases that are gone.
        CasesFailedError: More cases failed than ``max_failed_cases``.
    """
    dataset = prepared(config)
    folder = config.preprocessed_folder
    folder.mkdir(parents=True, exist_ok=True)
    with environment(config):
        plans_file = _plan(config, dataset)
        plans = _load(plans_file)
        configuration = _configuration(config, plans, plans_file)
        plans_hash = _plans_hash(plans, configuration)
        done = _record(config)
        inputs = fingerprint(
            [folder / "dataset.json"], {"dataset": dataset["dataset_hash"], "plans": plans_hash}
        )
        if done.is_done(inputs):
            progress(f"{config.configuration} is preprocessed already")
            return dict(done.read()["result"])
        failures = Failures("plan_and_preprocess")
        cases = _preprocess(config, dataset, plans_file, failures)
    _place_references(config, cases)
    _split(config, cases)
    result = {
        "cases": cases,
        "failed": failures.reasons,
        "configuration": config.configuration,
        "plans_name": config.nnunet_plans_name,
        "plans_hash": plans_hash,
        "dataset_hash": dataset["dataset_hash"],
        "patch_size": [int(size) for size in configuration.patch_size],
        "spacing": [float(step) for step in configuration.spacing],
        "batch_size": int(configuration.batch_size),
        "normalization": list(configuration.normalization_schemes),
        "preprocessed_folder": config.root.relative(folder),
    }
    outputs = [
        *(folder / configuration.data_identifier / name for case in cases for name in _names(case)),
        *(folder / "gt_segmentations" / f"{case}{ENDING}" for case in cases),
        folder / "dataset.json",
        folder / "dataset_fingerprint.json",
    ]
    done.record(inputs, outputs, result)
    return result


def preprocessed(config: TaskConfig) -> dict[str, Any]:
    """The result of :func:`plan_and_preprocess` for this config.

    Raises:
        UserError: The preprocessed dataset is missing or unfinished.
    """
    record = _record(config)
    content = record.read()
    plans_file = config.preprocessed_folder / f"{config.nnunet_plans_name}.json"
    if not content or not record.is_done(content["inputs"]) or not plans_file.is_file():
        raise UserError(
            f"the configuration {config.configuration} of {config.preprocessed_folder} is not "
            "preprocessed: run plan_and_preprocess first."
        )
    plans = _load(plans_file)
    if content["result"]["plans_hash"] != _plans_hash(
        plans, _configuration(config, plans, plans_file)
    ):
        raise UserError(
            f"the plans {plans_file} have changed since the cases were preprocessed: run "
            "plan_and_preprocess again."
        )
    return dict(content["result"])


def _record(config: TaskConfig) -> Manifest:
    name = f"preprocess-{config.nnunet_plans_name}-{config.configuration}"
    return Manifest(config.preprocessed_folder, name)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps nnU-Net's prints and progress bars off the console."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


@contextmanager
def _bar_as_progress(module: Any, what: str) -> Iterator[None]:
    """Shows the progress bar of a module of nnU-Net as the stage's own progress."""
    console, original = sys.stdout, module.tqdm

    def update(bar: Any, steps: int = 1) -> None:
        original.update(bar, steps)
        with redirect_stdout(console):
            progress(what, bar.n, bar.total)

    module.tqdm = type("Bar", (original,), {"update": update})
    try:
        yield
    finally:
        module.tqdm = original


# --- fingerprint and plans ---


def _plan(config: TaskConfig, dataset: dict[str, Any]) -> Path:
    """Makes the plans unless they are made; returns their file."""
    folder = config.preprocessed_folder
    plans_file = folder / f"{config.nnunet_plans_name}.json"
    settings = {"dataset": dataset["dataset_hash"], "nnunetv2": version("nnunetv2")}
    extracted = Manifest(folder, "fingerprint")
    # By name, not size: the user may edit plans, as nnU-Net's documentation describes.
    planned = Manifest(folder, f"plan-{config.nnunet_plans_name}")
    if (
        planned.is_done(fingerprint([], settings))
        and extracted.is_done(fingerprint([], settings))
        and plans_file.is_file()
        and (folder / "dataset.json").is_file()
    ):
        return plans_file

    from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor

    if not extracted.is_done(fingerprint([], settings)):
        progress(f"extracting the fingerprint of {len(dataset['cases'])} cases")
        try:
            with _bar_as_progress(fingerprint_extractor, "case read"), quiet():
                fingerprint_extractor.DatasetFingerprintExtractor(
                    config.dataset_name, processes(config)
                ).run(overwrite_existing=True)
        except RuntimeError as error:
            if "background worker" not in str(error):
                raise
            raise UserError(
                "plan_and_preprocess: a worker process was killed, most likely for lack of memory: "
                "set num_processes lower or give the stage more memory, then run the same command "
                "again."
            ) from None
        extracted.record(fingerprint([], settings), [folder / "dataset_fingerprint.json"])
    progress(f"planning {config.nnunet_plans_name}")
    _remove_broken(plans_file)
    planner_class = _planner(config.nnunet_plans_name)
    with quiet():
        planner_class(config.dataset_name, plans_name=config.nnunet_plans_name).plan_experiment()
    planned.record(fingerprint([], settings), [])
    return plans_file


def _remove_broken(plans_file: Path) -> None:
    """Removes plans that a kill cut off; the planner would read them to add its own."""
    with suppress(OSError):
        try:
            json.loads(plans_file.read_text(encoding="utf-8"))
        except ValueError:
            plans_file.unlink()


def _planner(plans_name: str) -> Any:
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
        ExperimentPlanner,
    )

    if plans_name not in PLANNERS:
        return ExperimentPlanner
    from nnunetv2.experiment_planning.experiment_planners.residual_unets import (
        residual_encoder_unet_planners as presets,
    )

    return getattr(presets, PLANNERS[plans_name])


def _load(plans_file: Path) -> Any:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    try:
        return PlansManager(json.loads(plans_file.read_text(encoding="utf-8")))
    except ValueError as error:
        raise UserError(
            f"the plans {plans_file} are not valid JSON ({error}): correct the file, or remove it "
            "and run plan_and_preprocess."
        ) from None


def _configuration(config: TaskConfig, plans: Any, plans_file: Path) -> Any:
    available = list(plans.plans["configurations"])
    if config.configuration not in available:
        raise UserError(
            f"configuration: the plans {plans_file.name} of {config.dataset_name} have no "
            f"{config.configuration!r}; they have {', '.join(available)}."
        )
    configuration = plans.get_configuration(config.configuration)
    if configuration.previous_stage_name is not None:
        raise UserError(
            f"configuration: {config.configuration!r} is the second stage of a cascade and needs "
            f"predictions of {configuration.previous_stage_name!r} for all cases, which no stage "
            "here makes: choose another configuration."
        )
    return configuration


def _plans_hash(plans: Any, configuration: Any) -> str:
    """The hash of what the plans say for one configuration, whatever others they hold."""
    common = {key: value for key, value in plans.plans.items() if key != "configurations"}
    return fingerprint([], {"plans": common, "configuration": configuration.configuration})


def _case_settings(plans: Any, configuration: Any) -> dict[str, Any]:
    """The part of the plans that decides a preprocessed case: all but the network and batch."""
    common = {key: value for key, value in plans.plans.items() if key != "configurations"}
    own = {
        key: value
        for key, value in configuration.configuration.items()
        if key not in ("architecture", "batch_size", "batch_dice", "inherits_from")
    }
    return {"plans": common, "configuration": own}


# --- cases ---


def _preprocess(
    config: TaskConfig, dataset: dict[str, Any], plans_file: Path, failures: Failures
) -> list[str]:
    """Preprocesses the cases that are missing; returns the identifiers of all that are there."""
    plans = _load(plans_file)
    configuration = _configuration(config, plans, plans_file)
    settings = _case_settings(plans, configuration)
    folder = config.preprocessed_folder / configuration.data_identifier
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(f"{PARTIAL}*"):
        shutil.rmtree(stale, ignore_errors=True)
    to_do: dict[str, tuple[Any, ...]] = {}
    for case in dataset["cases"]:
        raw = Manifest(config.raw_folder, f"case-{case}").read()
        inputs = fingerprint([], {"case": raw["inputs"], **settings})
        if not Manifest(folder, case).is_done(inputs):
            files = [config.raw_folder / name for name in raw["outputs"]]
            to_do[case] = (case, files, folder, plans_file, config.configuration, inputs)
    total = len(dataset["cases"])
    count = total - len(to_do)
    for case, _ in for_each_case(_preprocess_case, to_do, failures, processes(config)):
        count += 1
        progress(f"{case} preprocessed", count, total)
    failures.check(total, config.max_failed_cases)
    cases = [case for case in dataset["cases"] if case not in failures.reasons]
    remove_others(folder, [name for case in cases for name in _names(case)])
    remove_others(folder / ".medseg", [f"{case}.json" for case in cases])
    return cases


def _names(case: str) -> list[str]:
    return [f"{case}.b2nd", f"{case}_seg.b2nd", f"{case}.pkl"]


def _preprocess_case(
    case: str, files: list[Path], folder: Path, plans_file: Path, name: str, inputs: str
) -> None:
    # Like nnU-Net's DefaultPreprocessor.run for one case, into a folder of its own: what lies
    # beside the other cases is always whole.
    plans = _load(plans_file)
    configuration = plans.get_configuration(name)
    dataset = json.loads((plans_file.parent / "dataset.json").read_text(encoding="utf-8"))
    images = sorted(str(path) for path in files if path.parent.name == "imagesTr")
    label = next(str(path) for path in files if path.parent.name == "labelsTr")
    temporary = folder / f"{PARTIAL}{case}"
    temporary.mkdir(exist_ok=True)
    try:
        with quiet(), disk_errors(temporary / "more"):
            configuration.preprocessor_class(verbose=False).run_case_save(
                str(temporary / case), images, label, plans, configuration, dataset
            )
        targets = [folder / file for file in _names(case)]
        for target in targets:
            (temporary / target.name).replace(target)
        Manifest(folder, case).record(inputs, targets)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _place_references(config: TaskConfig, cases: list[str]) -> None:
    """nnU-Net evaluates against ``gt_segmentations``, so that raw data may go away."""
    folder = config.preprocessed_folder / "gt_segmentations"
    folder.mkdir(exist_ok=True)
    names = [f"{case}{ENDING}" for case in cases]
    for name in names:
        place(config.raw_folder / "labelsTr" / name, folder / name)
    remove_others(folder, names)


def _split(config: TaskConfig, cases: list[str]) -> None:
    """Writes nnU-Net's five-fold split here: folds that train at once would race for it."""
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    def default(names: list[str]) -> list[dict[str, list[str]]]:
        return [
            {part: [str(case) for case in fold[part]] for part in ("train", "val")}
            for fold in generate_crossval_split(sorted(names), seed=12345, n_splits=5)
        ]

    path = config.preprocessed_folder / "splits_final.json"
    if path.is_file():
        present = json.loads(path.read_text(encoding="utf-8"))
        named = {case for fold in present for part in ("train", "val") for case in fold[part]}
        if len(named) < 5 or present != default(sorted(named)):  # the user's own
            gone = sorted(named - set(cases))
            if gone:
                raise UserError(
                    f"{path} names cases that the dataset no longer holds ({', '.join(gone)}): "
                    "edit it, or remove it to get nnU-Net's five-fold split."
                )
            return
    write_json(path, default(cases))
