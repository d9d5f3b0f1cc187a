"""The segmentation task file: which series or file goes in, which segments come out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from medseg.project import UserError

# DICOM's value representations LO and SH (PS3.5 6.2): characters, without backslash
LongText = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\\]*$")]
ShortText = Annotated[str, Field(min_length=1, max_length=16, pattern=r"^[^\\]*$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Code(_Model):
    """A coded concept (PS3.3 8.8), such as SCT 78961009 "Spleen"."""

    code: ShortText
    scheme: ShortText
    meaning: LongText

    @field_validator("code", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        # SNOMED codes are numbers to a YAML reader unless they are quoted
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class Segment(_Model):
    """One segment of the DICOM SEG; ``segment_label`` is the name of one of the model's labels."""

    segment_label: LongText
    segmented_property_category: Code
    segmented_property_type: Code
    algorithm_name: LongText


class Modality(_Model):
    """One input channel: how to find its file or its series.

    Attributes:
        file_pattern: Suffix that marks its NIfTI file.
        rules_text: MONAI Deploy's series-selection rules: JSON in a string.
    """

    file_pattern: str = Field("", alias="File_Pattern")
    rules_text: str = Field("", alias="Rules_Text")

    @field_validator("rules_text")
    @classmethod
    def _rules(cls, text: str) -> str:
        if not text.strip():
            return ""
        try:
            selections = json.loads(text)["selections"]
            sound = selections and all(
                isinstance(item.get("conditions"), dict) and item["conditions"]
                for item in selections
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f'not of the form {{"selections": [...]}} ({error})') from None
        if not sound:
            raise ValueError("every selection needs conditions")
        return text

    @property
    def selections(self) -> list[dict[str, Any]]:
        """The selections of the rules; empty without rules."""
        return json.loads(self.rules_text)["selections"] if self.rules_text else []


class SegmentationTask(_Model):
    """One task of the file.

    Attributes:
        name: The task's name.
        modalities: The input channels by name, in the order of the model's channels.
        segments: What comes out.
        reference_modality: The modality whose grid and series the result belongs to.
    """

    name: LongText
    modalities: dict[str, Modality] = Field(alias="Modalities", min_length=1)
    segments: list[Segment] = Field(alias="Segments", min_length=1)
    reference_modality: str = Field("", alias="Reference_Modality")

    @model_validator(mode="after")
    def _consistent(self) -> SegmentationTask:
        names = [segment.segment_label.casefold() for segment in self.segments]
        if len(set(names)) < len(names):
            raise ValueError("Segments: two segments have the same segment_label")
        if not self.reference_modality and len(self.modalities) > 1:
            raise ValueError(
                f"Reference_Modality is missing: with several modalities name one of "
                f"{', '.join(self.modalities)}"
            )
        if self.reference_modality and self.reference_modality not in self.modalities:
            raise ValueError(
                f"Reference_Modality: {self.reference_modality} is none of the modalities "
                f"({', '.join(self.modalities)})"
            )
        return self

    @property
    def reference(self) -> str:
        """The modality whose grid and series the result belongs to."""
        return self.reference_modality or next(iter(self.modalities))

    def check_model(self, labels: Mapping[str, int], channels: int, where: str) -> None:
        """Checks that the task is about this model.

        Args:
            labels: The model's label names and values; 0 is background.
            channels: Number of its input channels.
            where: The task file, for the message.

        Raises:
            UserError: The segments are not the model's labels, or the modalities not its channels.
        """
        known = {name.casefold(): name for name, value in labels.items() if value}
        given = {item.segment_label.casefold(): item.segment_label for item in self.segments}
        foreign = [given[key] for key in given if key not in known]
        missing = [known[key] for key in known if key not in given]
        if foreign or missing:
            found = [f"{', '.join(foreign)}: no label of the model"] if foreign else []
            found += [f"{', '.join(missing)}: without a segment"] if missing else []
            raise UserError(
                f"{where}: the Segments of task {self.name} do not match the model's labels "
                f"({', '.join(known.values())}): {'; '.join(found)}."
            )
        if len(self.modalities) != channels:
            raise UserError(
                f"{where}: task {self.name} has {len(self.modalities)} modalities "
                f"({', '.join(self.modalities)}), but the model has {channels} input channels: "
                "list one modality a channel, in the model's order."
            )


def load_segmentation_task(path: Path, name: str = "") -> SegmentationTask:
    """Reads one task of a segmentation task file.

    Args:
        path: The YAML file.
        name: The task; may be empty where the file holds one.

    Raises:
        UserError: The file cannot be read, holds no such task, or the task has errors; the message
            names the field.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"the segmentation task file {path} cannot be read: {error}.") from None
    tasks = content.get("tasks") if isinstance(content, dict) else None
    if not isinstance(tasks, dict) or not tasks:
        raise UserError(f"the segmentation task file {path} has no 'tasks:' with a task in it.")
    if not name and len(tasks) > 1:
        raise UserError(
            f"{path} holds several tasks ({', '.join(map(str, tasks))}): name one "
            "(SEGMENTATION_TASK_NAME)."
        )
    name = name or str(next(iter(tasks)))
    if name not in tasks:
        raise UserError(f"{path} has no task {name!r}; it holds {', '.join(map(str, tasks))}.")
    fields = tasks[name] if isinstance(tasks[name], dict) else {}
    try:
        return SegmentationTask.model_validate({**fields, "name": name})
    except ValidationError as error:
        findings = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or name}: "
            f"{item['msg'].removeprefix('Value error, ')}"
            for item in error.errors()
        )
        raise UserError(f"the segmentation task file {path}, task {name}: {findings}.") from None
