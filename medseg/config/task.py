"""``TaskConfig``: the YAML that MAIA's users have, validated."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from medseg.config.labels import Label, Labels
from medseg.project import DataRoot, UserError, findings, lock, stage

LABEL_KEY = "label"
"""The key of ``modality_dict`` that names the label's suffix; every other key is a channel."""

DEFAULT_SUFFIXES = {"image": "_image.nii.gz", LABEL_KEY: "_label.nii.gz"}
"""The ``modality_dict`` of a config that has none, and of a dataset without a config."""

FINE_TUNING: dict[str, Any] = {
    "nnunet_plans_name": "PretrainedPlans",
    "num_epochs": 50,
    "initial_lr": 1e-3,
}
"""Defaults of a config that names ``pretrained_weights``: the plans are the model's, and lie beside
the dataset's own; so do the folds."""

FROM_A_MODEL = ("pretrained_weights", "freeze_encoder", "new_heads")
"""Fields that only a training that starts from a model has."""

_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*")
"""Names that become parts of file names."""

_SUFFIX = re.compile(r"[\w.-]+")


def number_as_text(value: Any) -> Any:
    """What YAML read as a whole number because it stood without quotes, as the text it is."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class BundleConfig(_Strict):
    """Where the MONAI bundle lies and how its training is tracked."""

    bundle_root: str = Field(description="folder of the MONAI bundle")
    tracking_uri: str | None = Field(
        None, description="MLflow server; without it the store on the data root (mlflow.db)"
    )
    mlflow_run_name: str | None = Field(None, description="name of the MLflow run")
    metadata_file: str | None = Field(
        None, description="JSON whose fields replace those of the generated metadata.json"
    )


class TaskConfig(_Strict):
    """A task: data, labels, nnU-Net's settings, bundle.

    Paths are as the user wrote them; the properties (:attr:`data_folder`, …) are the resolved,
    confined ones.
    """

    # --- the data ---
    data_dir: str = Field(description="folder of the NIfTI dataset")
    dataset_format: Literal["subfolders", "decathlon"] = Field(
        "subfolders", description="<case>/<case><suffix>, or imagesTr/labelsTr with dataset.json"
    )
    modality_dict: dict[str, str] = Field(
        default_factory=DEFAULT_SUFFIXES.copy,
        description="file suffix of every channel and of the label",
    )
    modality_list: list[str] | None = Field(
        None,
        description="nnU-Net channel names in the order of modality_dict, such as [CT]; "
        "they decide the intensity normalisation",
    )
    labels: dict[str, Label] = Field(description="label names to values, background: 0 included")
    label_dict: dict[str, Label] | None = Field(
        None, description="the foreground labels; must agree with labels"
    )
    regions_class_order: list[int] | None = Field(
        None, description="nnU-Net's order of region-based labels"
    )
    max_failed_cases: int = Field(
        0, ge=0, description="cases that may fail without failing their stage"
    )

    test_cases: list[str] = Field(
        default_factory=list, description="cases held back from training, as a fixed test set"
    )

    # --- accepted for MAIA's files, without effect ---
    output_data_dir: str | None = Field(None, description="data_dir is used")
    concat_modalities_flag: bool = Field(False, description="several channels are always stacked")

    # --- nnU-Net ---
    nnunet_root_dir: str = Field("nnUNet", description="folder of nnU-Net's three folders")
    dataset_name_or_id: Annotated[str, BeforeValidator(number_as_text)] = Field(
        description="nnU-Net dataset id, 1 to 999"
    )
    experiment_name: str = Field(description="the dataset's and the MLflow experiment's name")
    configuration: str = Field("3d_fullres", description="nnU-Net configuration")
    trainer_class_name: str = Field("nnUNetTrainer", description="nnU-Net trainer")
    nnunet_plans_name: str = Field("nnUNetPlans", description="nnU-Net plans identifier")
    fold: int | Literal["all"] = Field(0, description="fold to train and validate")
    num_epochs: int = Field(1000, ge=1, description="training epochs")
    iterations_per_epoch: int = Field(250, ge=1, description="training steps of an epoch")
    val_iterations_per_epoch: int = Field(
        50, ge=1, description="online validation steps of an epoch"
    )
    initial_lr: float = Field(1e-2, gt=0, description="learning rate of the first epoch")
    save_every: int = Field(50, ge=1, description="epochs between two checkpoints")
    checkpoint_minutes: float = Field(
        10, gt=0, description="minutes of training that may be lost when its pod ends"
    )
    precision: Literal["auto", "bfloat16", "float32"] = Field(
        "auto",
        description="arithmetic on a CPU; auto: bfloat16 where it has units for it (and, to "
        "predict, where results are those of float32)",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to train and predict")
    num_processes: int | None = Field(
        None, ge=1, description="worker processes; default: the CPUs at hand, at most 8"
    )
    seed: int = Field(12345, description="seed of initial weights and sampling")
    continue_training: bool = Field(
        True, description="resume from the last checkpoint; false starts anew"
    )
    run_validation_only: bool = Field(
        False, description="train does nothing but check the checkpoint"
    )
    train_extra_configs: dict[str, Any] = Field(
        default_factory=dict,
        description="further attributes of nnU-Net's trainer, such as weight_decay",
    )

    # --- a training that starts from a model ---
    pretrained_weights: str | None = Field(
        None,
        description="model that the training starts from, and whose plans it takes: model.ts, a "
        "bundle's .pt, nnU-Net's .pth or a Lightning .ckpt",
    )
    freeze_encoder: bool = Field(False, description="leave the network's encoder as it is")
    new_heads: bool = Field(
        False, description="labels may differ from the model's; those that it lacks are learnt anew"
    )

    # --- the bundle ---
    bundle_config: BundleConfig

    _root: DataRoot = PrivateAttr()
    _path: Path = PrivateAttr()
    _default_fold: int | Literal["all"] = PrivateAttr()
    _default_configuration: str = PrivateAttr()

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_fine_tuning(cls, content: Any) -> Any:
        if isinstance(content, dict) and content.get("pretrained_weights"):
            return {**FINE_TUNING, **content}
        return content

    @field_validator("dataset_name_or_id")
    @classmethod
    def _valid_id(cls, value: str) -> str:
        match = re.fullmatch(r"(?:Dataset)?(\d{1,3})(?:_.*)?", value)
        if match is None or int(match[1]) == 0:
            raise ValueError("must be a number from 1 to 999, such as 9 or '09'")
        return value

    @field_validator("experiment_name", "configuration", "trainer_class_name", "nnunet_plans_name")
    @classmethod
    def _valid_name(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError("may hold letters, digits, '_', '-' and '.' only")
        return value

    @field_validator("test_cases")
    @classmethod
    def _valid_cases(cls, value: list[str]) -> list[str]:
        for case in value:
            if "/" in case or "\0" in case or case in ("", ".", ".."):
                raise ValueError(f"{case!r} is no case: give names of cases, without folders")
        return value

    @field_validator("modality_dict")
    @classmethod
    def _valid_suffixes(cls, value: dict[str, str]) -> dict[str, str]:
        for key, suffix in value.items():
            if not _SUFFIX.fullmatch(suffix):
                raise ValueError(
                    f"{key}: {suffix!r} is no file suffix: it may hold letters, digits, '_', '-' "
                    "and '.' only"
                )
        return value

    @field_validator("fold", mode="before")
    @classmethod
    def _valid_fold(cls, value: Any) -> Any:
        if value != "all" and not re.fullmatch(r"\d+", str(value)):
            raise ValueError("must be the number of a fold (0, 1, 2, …) or 'all'")
        return value if value == "all" else int(value)

    @field_validator("labels", "label_dict", mode="before")
    @classmethod
    def _whole_labels(cls, value: Any) -> Any:
        for name, given in value.items() if isinstance(value, dict) else ():
            if given == []:
                raise ValueError(f"{name}: has no value")
            for number in given if isinstance(given, list) else [given]:
                if isinstance(number, bool) or (isinstance(number, int) and number < 0):
                    raise ValueError(f"{name}: values must be whole numbers from 0")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> TaskConfig:
        Labels.of(self.labels, self.regions_class_order)  # raises where they break a rule
        for name, value in (self.label_dict or {}).items():
            if self.labels.get(name) != value:
                raise ValueError(f"label_dict: {name}: {value} does not agree with labels")
        if LABEL_KEY not in self.modality_dict or len(self.modality_dict) < 2:
            raise ValueError("modality_dict: must hold 'label' and at least one channel")
        if self.dataset_format == "subfolders" and not self.has_distinct_suffixes:
            raise ValueError("modality_dict: two entries have the same suffix")
        if self.modality_list is not None and len(self.modality_list) != len(self.channels):
            raise ValueError(
                f"modality_list: must name {len(self.channels)} channels, "
                "as many as modality_dict without 'label'"
            )
        for name in FROM_A_MODEL[1:]:
            if getattr(self, name) and not self.pretrained_weights:
                raise ValueError(f"{name}: has a meaning only with pretrained_weights")
        return self

    # --- what follows from the fields ---
    @property
    def channels(self) -> dict[str, str]:
        """Channel keys to file suffixes, in channel order."""
        return {key: suffix for key, suffix in self.modality_dict.items() if key != LABEL_KEY}

    @property
    def has_distinct_suffixes(self) -> bool:
        """Whether suffixes tell a case's files apart; in the Decathlon's layout folders do."""
        return len(set(self.modality_dict.values())) == len(self.modality_dict)

    @property
    def label_suffix(self) -> str:
        """The suffix of label files."""
        return self.modality_dict[LABEL_KEY]

    @property
    def label_set(self) -> Labels:
        """What :attr:`labels` and :attr:`regions_class_order` mean together."""
        return Labels.of(self.labels, self.regions_class_order)

    @property
    def dataset_id(self) -> int:
        """nnU-Net's dataset number, 1 to 999."""
        match = re.search(r"\d+", self.dataset_name_or_id)
        assert match is not None  # _valid_id
        return int(match[0])

    @property
    def dataset_name(self) -> str:
        """nnU-Net's dataset folder name, such as ``Dataset009_Task09_Spleen``."""
        return f"Dataset{self.dataset_id:03d}_{self.experiment_name}"

    @property
    def root(self) -> DataRoot:
        """The data root that the paths were resolved against."""
        return self._root

    @property
    def path(self) -> Path:
        """The config file."""
        return self._path

    @property
    def default_fold(self) -> int | Literal["all"]:
        """The fold that the file itself names, whichever this config is for."""
        return self._default_fold

    @property
    def default_configuration(self) -> str:
        """The configuration that the file itself names, which the bundle is about."""
        return self._default_configuration

    def of(self, *, configuration: str = "", fold: int | str = -1) -> TaskConfig:
        """This config for another fold, or another configuration of the same plans.

        Args:
            configuration: Its name; empty: this one's.
            fold: Its number or ``all``; negative: this one's.

        Raises:
            UserError: The name can be none of a configuration.
        """
        if configuration and not _NAME.fullmatch(configuration):
            raise UserError(f"configuration: {configuration!r} is no name of a configuration.")
        other: dict[str, Any] = {"configuration": configuration} if configuration else {}
        if fold == "all":
            other["fold"] = fold
        elif int(fold) >= 0:
            other["fold"] = int(fold)
        return self.model_copy(update=other) if other else self

    @property
    def data_folder(self) -> Path:
        """The NIfTI dataset's folder."""
        return self.root.resolve(self.data_dir, field="data_dir")

    @property
    def nnunet_folder(self) -> Path:
        """The folder that holds nnU-Net's three folders."""
        return self.root.resolve(self.nnunet_root_dir, field="nnunet_root_dir")

    @property
    def raw_folder(self) -> Path:
        """nnU-Net's raw dataset (``imagesTr``, ``labelsTr``, ``dataset.json``)."""
        return self.nnunet_folder / "nnUNet_raw_data_base" / self.dataset_name

    @property
    def preprocessed_folder(self) -> Path:
        """nnU-Net's preprocessed dataset with the plans."""
        return self.nnunet_folder / "nnUNet_preprocessed" / self.dataset_name

    @property
    def results_folder(self) -> Path:
        """nnU-Net's trained model: holds ``fold_F``, ``plans.json``, ``dataset.json``."""
        return (
            self.nnunet_folder
            / "nnUNet_trained_models"
            / self.dataset_name
            / f"{self.trainer_class_name}__{self.nnunet_plans_name}__{self.configuration}"
        )

    @property
    def pretrained_file(self) -> Path | None:
        """The model that the training starts from."""
        given = self.pretrained_weights
        return self.root.resolve(given, field="pretrained_weights") if given else None

    @property
    def bundle_folder(self) -> Path:
        """The MONAI bundle's folder."""
        return self.root.resolve(self.bundle_config.bundle_root, field="bundle_config.bundle_root")

    def fold_folder(self) -> Path:
        """nnU-Net's folder of the config's fold."""
        return self.results_folder / f"fold_{self.fold}"


def load_config(
    path: str | Path, root: DataRoot | None = None, *, fold: int = -1, configuration: str = ""
) -> TaskConfig:
    """Reads a task's config.

    Args:
        path: The YAML file, relative to the data root or under ``/mnt/Data``.
        root: The data root; by default the environment's.
        fold: Takes the place of the config's fold; negative leaves that as it is.
        configuration: Takes the place of the config's configuration; empty leaves that as it is.

    Returns:
        The validated config, with every path inside the data root.

    Raises:
        UserError: The file is missing, empty or no YAML mapping; a key is unknown, missing or of
            the wrong type; or a path leaves the data root. All findings in one message.
    """
    root = root or DataRoot.from_environment()
    file = root.resolve(path, field="config_file_path")
    if not file.is_file():
        raise UserError(f"the config {file} does not exist: check config_file_path.")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = getattr(error, "problem_mark", None)
        where = f" (line {place.line + 1}, column {place.column + 1})" if place else ""
        problem = getattr(error, "problem", None) or "not a text file"
        raise UserError(f"the config {file} is not valid YAML{where}: {problem}.") from None
    if content is None:
        raise UserError(f"the config {file} is empty: write the task's settings into it.")
    if not isinstance(content, dict):
        raise UserError(
            f"the config {file} holds a {type(content).__name__}, not a mapping of settings: "
            "write one 'key: value' a line."
        )
    try:
        config = TaskConfig.model_validate(content)
    except ValidationError as error:
        raise UserError(f"the config {file} has errors: {findings(error, TaskConfig)}.") from None
    config._root, config._path = root, file
    config._default_fold, config._default_configuration = config.fold, config.configuration
    config = config.of(configuration=configuration, fold=fold)
    root.resolve(config.data_dir, field="data_dir")  # each raises where it leaves the root
    root.resolve(config.nnunet_root_dir, field="nnunet_root_dir")
    root.resolve(config.bundle_config.bundle_root, field="bundle_config.bundle_root")
    if config.bundle_config.metadata_file:
        root.resolve(config.bundle_config.metadata_file, field="bundle_config.metadata_file")
    if config.pretrained_weights:
        root.resolve(config.pretrained_weights, field="pretrained_weights")
    return config


@contextmanager
def fold_stage(
    name: str, config_file_path: str, fold: int = -1, configuration: str = ""
) -> Iterator[TaskConfig]:
    """Frames the body of a component that works on one fold: a :func:`~medseg.project.stage`.

    Nobody else runs this stage on the same fold at the same time, whichever config and whichever
    value of ``fold`` name it.

    Args:
        name: The component.
        config_file_path: As in :func:`load_config`.
        fold: As in :func:`load_config`.
        configuration: As in :func:`load_config`.

    Yields:
        The config of that fold.

    Raises:
        SystemExit: As in :func:`~medseg.project.stage`.
    """
    target = "-".join(filter(None, (config_file_path, configuration, str(fold))))
    with stage(name, target=target) as root:
        config = load_config(config_file_path, root, fold=fold, configuration=configuration)
        place = root.relative(config.fold_folder()).replace("/", "_")
        with lock(root, f"stage-{name}-{place}"):
            yield config
