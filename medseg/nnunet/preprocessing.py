"""Fingerprint, plans and preprocessed cases, by nnU-Net's own classes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from medseg.config import TaskConfig
from medseg.imaging import ENDING
from medseg.nnunet.console import bar_as_progress, quiet
from medseg.nnunet.devices import processes
from medseg.nnunet.ignored import ignored_as_background
from medseg.nnunet.paths import environment
from medseg.nnunet.plans import (
    case_settings,
    configuration_of,
    load_plans,
    plans_hash,
    plans_path,
    settings_of,
)
from medseg.nnunet.pretrained import adopted_plans, read_pretrained
from medseg.nnunet.raw import prepared
from medseg.nnunet.workers import for_each_case
from medseg.project import (
    Failures,
    Manifest,
    UserError,
    fingerprint,
    link_or_copy,
    progress,
    read_json,
    remove_others,
    scratch_folder,
    write_json,
)
from medseg.project.files import remove_stale

PLANNERS = {
    "nnUNetResEncUNetMPlans": "nnUNetPlannerResEncM",
    "nnUNetResEncUNetLPlans": "nnUNetPlannerResEncL",
    "nnUNetResEncUNetXLPlans": "nnUNetPlannerResEncXL",
}
"""nnU-Net's presets by the name of their plans; other plans are made by ``ExperimentPlanner``."""


@dataclass(frozen=True)
class Preprocessed:
    """What :func:`plan_and_preprocess` has made. Axes are in nnU-Net's order, slices first.

    Attributes:
        cases: Identifiers of the preprocessed cases.
        failed: Case to the reason for its failure.
        configuration: nnU-Net's configuration.
        plans_name: nnU-Net's name of the plans.
        plans_hash: Hash of what the plans say for the configuration.
        dataset_hash: Hash of the raw dataset.
        patch_size: Voxels.
        spacing: Millimetres.
        batch_size: Patches in a batch.
        normalization: The intensity normalisation of each channel.
        preprocessed_folder: The folder, relative to the data root.
    """

    cases: list[str]
    failed: dict[str, str]
    configuration: str
    plans_name: str
    plans_hash: str
    dataset_hash: str
    patch_size: list[int]
    spacing: list[float]
    batch_size: int
    normalization: list[str]
    preprocessed_folder: str


def plan_and_preprocess(config: TaskConfig) -> Preprocessed:
    """Extracts the dataset's fingerprint, plans, and preprocesses for one configuration.

    The same work as ``nnUNetv2_plan_and_preprocess -c <configuration>``, with the same files as
    its result, and the five-fold split (``splits_final.json``) that nnU-Net would make when it
    trains. What is finished is not repeated: plans are made once for a dataset, so a configuration
    that the user adds to them stays, and after a kill only the missing cases are preprocessed.

    With ``pretrained_weights`` the plans are the model's, under the config's ``nnunet_plans_name``
    beside the dataset's own, and no fingerprint is taken.

    Args:
        config: The task's config.

    Returns:
        What the plans say, and the cases that are preprocessed.

    Raises:
        UserError: The dataset is not prepared; the plans have no such configuration (the message
            names those they have); a split of the user's own names cases that are gone; the model
            does not fit the task; plans of its name are the dataset's own.
        CasesFailedError: More cases failed than ``max_failed_cases``.
    """
    dataset = prepared(config)
    folder = config.preprocessed_folder
    folder.mkdir(parents=True, exist_ok=True)
    with environment(config):
        plans_file = _adopt(config) if config.pretrained_weights else _plan(config, dataset)
        plans = load_plans(plans_file)
        configuration = configuration_of(config, plans)
        plans_digest = plans_hash(plans, configuration)
        done = _record(config)
        inputs = fingerprint(
            {"dataset": dataset["dataset_hash"], "plans": plans_digest}, [folder / "dataset.json"]
        )
        before = done.result(inputs)
        if before is not None:
            progress(f"{config.configuration} is preprocessed already")
            return Preprocessed(**before)
        failures = Failures()
        cases = _preprocess(config, dataset, plans_file, failures)
    _place_references(config, cases)
    _split(config, cases)
    result = Preprocessed(
        cases=cases,
        failed=failures.reasons,
        configuration=config.configuration,
        plans_name=config.nnunet_plans_name,
        plans_hash=plans_digest,
        dataset_hash=dataset["dataset_hash"],
        patch_size=[int(size) for size in configuration.patch_size],
        spacing=[float(step) for step in configuration.spacing],
        batch_size=int(configuration.batch_size),
        normalization=list(configuration.normalization_schemes),
        preprocessed_folder=config.root.relative(folder),
    )
    outputs = [
        *(folder / configuration.data_identifier / name for case in cases for name in _names(case)),
        *(folder / "gt_segmentations" / f"{case}{ENDING}" for case in cases),
        folder / "dataset.json",
        *([] if config.pretrained_weights else [folder / "dataset_fingerprint.json"]),
    ]
    done.record(inputs, outputs, asdict(result))
    return result


def plan_configurations(
    config: TaskConfig, configurations: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Plans and preprocesses several configurations, with the first stages of cascades.

    Args:
        config: The task's config.
        configurations: Their names; none, or an empty one: the config's own.

    Returns:
        Those that are trained first, and those, the second stages of cascades, that need the
        predictions of these.

    Raises:
        UserError: As for :func:`plan_and_preprocess`; or a first stage is a cascade itself.
        CasesFailedError: More cases failed than ``max_failed_cases``.
    """
    wanted = list(dict.fromkeys(name or config.configuration for name in configurations))
    first: dict[str, None] = {}
    second = []
    for name in wanted or [config.configuration]:
        each = config.of(configuration=name)
        plan_and_preprocess(each)
        plans = load_plans(plans_path(each))
        stage = configuration_of(each, plans).previous_stage_name
        if stage is None:
            first[name] = None
            continue
        if plans.get_configuration(stage).previous_stage_name is not None:
            raise UserError(
                f"configuration: {stage}, the first stage of {name}, is a cascade itself: cascades "
                "of two stages are supported."
            )
        first[stage] = None
        second.append(name)
        plan_and_preprocess(config.of(configuration=stage))
    return list(first), second


def preprocessed(config: TaskConfig) -> Preprocessed:
    """The result of :func:`plan_and_preprocess` for this config.

    Raises:
        UserError: The preprocessed dataset is missing or unfinished.
    """
    result = _record(config).result()
    plans_file = plans_path(config)
    if result is None or not plans_file.is_file():
        raise UserError(
            f"the configuration {config.configuration} of {config.preprocessed_folder} is not "
            "preprocessed: run plan_and_preprocess first."
        )
    plans = load_plans(plans_file)
    if result["plans_hash"] != plans_hash(plans, configuration_of(config, plans)):
        raise UserError(
            f"the plans {plans_file} have changed since the cases were preprocessed: run "
            "plan_and_preprocess again."
        )
    return Preprocessed(**result)


@dataclass(frozen=True)
class Split:
    """The cases of one fold.

    Attributes:
        train: Those that it trains on.
        val: Those that it validates.
    """

    train: list[str]
    val: list[str]


def splits_path(config: TaskConfig) -> Path:
    """The file with the split of the cases into folds."""
    return config.preprocessed_folder / "splits_final.json"


def split_of(config: TaskConfig) -> Split | Literal["all"]:
    """The split of the config's fold; ``all`` of the fold that trains on every case.

    Raises:
        UserError: There is no such fold; the message says which there are.
    """
    if config.fold == "all":
        return "all"
    path = splits_path(config)
    splits = read_json(path)
    if not 0 <= config.fold < len(splits):
        raise UserError(
            f"fold: there is no fold {config.fold}; {path.name} has the folds 0 to "
            f"{len(splits) - 1}, and 'all' trains on every case."
        )
    return Split(splits[config.fold]["train"], splits[config.fold]["val"])


def _record(config: TaskConfig) -> Manifest:
    name = f"preprocess-{config.nnunet_plans_name}-{config.configuration}"
    return Manifest(config.preprocessed_folder, name)


# --- fingerprint and plans ---


def _plan(config: TaskConfig, dataset: dict[str, Any]) -> Path:
    """Makes the plans unless they are made; returns their file."""
    folder = config.preprocessed_folder
    plans_file = plans_path(config)
    if _adoption(config).read():
        raise UserError(
            f"nnunet_plans_name: {plans_file} are the plans of a model: choose another name, or "
            "name the model as pretrained_weights."
        )
    settings = {"dataset": dataset["dataset_hash"], "nnunetv2": version("nnunetv2")}
    ignore = config.label_set.ignore
    if ignore is not None:  # extracted by an earlier version, the fingerprint counted its voxels
        settings["ignore"] = str(ignore)
    extracted = Manifest(folder, "fingerprint")
    # By name, not size: the user may edit plans, as nnU-Net's documentation describes.
    planned = _planning(config)
    if (
        planned.is_done(fingerprint(settings))
        and extracted.is_done(fingerprint(settings))
        and plans_file.is_file()
        and (folder / "dataset.json").is_file()
    ):
        return plans_file

    from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor

    if not extracted.is_done(fingerprint(settings)):
        progress(f"extracting the fingerprint of {len(dataset['cases'])} cases")
        try:
            with (
                bar_as_progress(fingerprint_extractor, "case read"),
                ignored_as_background(fingerprint_extractor, ignore),
                quiet(),
            ):
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
        extracted.record(fingerprint(settings), [folder / "dataset_fingerprint.json"])
    progress(f"planning {config.nnunet_plans_name}")
    _remove_broken(plans_file)
    planner_class = _planner(config.nnunet_plans_name)
    with quiet():
        planner_class(config.dataset_name, plans_name=config.nnunet_plans_name).plan_experiment()
    planned.record(fingerprint(settings), [])
    return plans_file


def _adopt(config: TaskConfig) -> Path:
    """Puts the model's plans beside the dataset's own, once; returns their file."""
    folder, plans_file = config.preprocessed_folder, plans_path(config)
    model = read_pretrained(config)
    plans = adopted_plans(config, model)
    adopted = _adoption(config)
    _remove_broken(plans_file)
    # by name, not size: the user may edit these plans, too
    if not (adopted.is_done(fingerprint(plans)) and plans_file.is_file()):
        planned = bool(_planning(config).read()) or read_json(plans_file, plans) != plans
        if planned and not adopted.read():
            raise UserError(
                f"nnunet_plans_name: {plans_file} are plans of the dataset's own, which those of "
                f"{model.path} would replace: choose another name, or leave it out."
            )
        progress(f"taking the plans of {config.root.relative(model.path)}")
        write_json(plans_file, plans)
        adopted.record(fingerprint(plans), [])
    description = read_json(config.raw_folder / "dataset.json")
    if read_json(folder / "dataset.json", {}) != description:
        write_json(folder / "dataset.json", description)
    return plans_file


def _planning(config: TaskConfig) -> Manifest:
    return Manifest(config.preprocessed_folder, f"plan-{config.nnunet_plans_name}")


def _adoption(config: TaskConfig) -> Manifest:
    return Manifest(config.preprocessed_folder, f"adopt-{config.nnunet_plans_name}")


def _remove_broken(plans_file: Path) -> None:
    """Removes plans that a kill cut off; the planner would read them to add its own."""
    with suppress(OSError):
        try:
            read_json(plans_file)
        except UserError:
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


# --- cases ---


def _preprocess(
    config: TaskConfig, dataset: dict[str, Any], plans_file: Path, failures: Failures
) -> list[str]:
    """Preprocesses the cases that are missing; returns the identifiers of all that are there."""
    plans = load_plans(plans_file)
    configuration = configuration_of(config, plans)
    settings = case_settings(plans, configuration)
    folder = config.preprocessed_folder / configuration.data_identifier
    folder.mkdir(parents=True, exist_ok=True)
    for case in dataset["cases"]:
        remove_stale(folder / case)  # of a run that was killed
    to_do: dict[str, tuple[Any, ...]] = {}
    for case in dataset["cases"]:
        raw = Manifest(config.raw_folder, f"case-{case}").read()
        inputs = fingerprint({"case": raw["inputs"], **settings})
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
    plans = load_plans(plans_file)
    configuration = plans.get_configuration(name)
    dataset = read_json(plans_file.parent / "dataset.json")
    images = sorted(str(path) for path in files if path.parent.name == "imagesTr")
    label = next(str(path) for path in files if path.parent.name == "labelsTr")
    with scratch_folder(folder / case) as temporary:
        with quiet():
            configuration.preprocessor_class(verbose=False).run_case_save(
                str(temporary / case), images, label, plans, configuration, dataset
            )
        targets = [folder / file for file in _names(case)]
        for target in targets:
            (temporary / target.name).replace(target)
        Manifest(folder, case).record(inputs, targets)


def _place_references(config: TaskConfig, cases: list[str]) -> None:
    """nnU-Net evaluates against ``gt_segmentations``, so that raw data may go away."""
    folder = config.preprocessed_folder / "gt_segmentations"
    folder.mkdir(exist_ok=True)
    names = [f"{case}{ENDING}" for case in cases]
    for name in names:
        link_or_copy(config.raw_folder / "labelsTr" / name, folder / name)
    remove_others(folder, names)


def _split(config: TaskConfig, cases: list[str]) -> None:
    """Writes nnU-Net's five-fold split here: folds that train at once would race for it."""
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    def default(names: list[str]) -> list[dict[str, list[str]]]:
        return [
            {part: [str(case) for case in fold[part]] for part in ("train", "val")}
            for fold in generate_crossval_split(sorted(names), seed=12345, n_splits=5)
        ]

    path = splits_path(config)
    if path.is_file():
        present = read_json(path)
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


def example_patches(
    preprocessed: Path, plans: Mapping[str, Any], configuration: str, labels: int = 0
) -> Any:
    """Two patches of preprocessed training cases, to compare networks on.

    Args:
        preprocessed: nnU-Net's preprocessed dataset.
        plans: nnU-Net's plans.
        configuration: Name of the configuration.
        labels: Of a cascade: channels that follow the image's, one for each label that its first
            stage can find. What they say are halves of the patch.

    Returns:
        A tensor ``(2, channels, *patch)``, float32: the centres of the first two cases (of one
        case, its centre twice).

    Raises:
        UserError: The folder holds no preprocessed case.
    """
    from acvl_utils.cropping_and_padding.padding import pad_nd_image
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    settings = settings_of(plans, configuration)
    folder = preprocessed / settings["data_identifier"]
    missing = UserError(
        f"{folder} holds no preprocessed case to compare the packaged network on: "
        "run plan_and_preprocess again."
    )
    if not folder.is_dir() or not any(folder.glob("*.pkl")):
        raise missing
    patch = tuple(settings["patch_size"])
    dataset = infer_dataset_class(str(folder))(str(folder))
    patches = []
    for case in itertools.islice(itertools.cycle(sorted(dataset.identifiers)[:2]), 2):
        data = torch.from_numpy(np.asarray(dataset.load_case(case)[0][:], dtype=np.float32))
        if len(patch) < data.ndim - 1:
            data = data[:, data.shape[1] // 2]
        padded = pad_nd_image(data, patch)
        corner = [(have - want) // 2 for have, want in zip(padded.shape[1:], patch, strict=True)]
        place = [slice(at, at + want) for at, want in zip(corner, patch, strict=True)]
        patches.append(padded[(slice(None), *place)])
    images = torch.stack(patches)
    if not labels:
        return images
    found = torch.arange(patch[0]) * 2 // patch[0]
    hot = torch.stack([(found == label % 2).float() for label in range(labels)])
    hot = hot.reshape(1, labels, patch[0], *[1] * (len(patch) - 1))
    return torch.cat([images, hot.expand(len(images), labels, *patch)], dim=1)
