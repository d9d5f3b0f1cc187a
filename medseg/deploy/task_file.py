"""The segmentation task file: which series or file goes in, which segments come out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from medseg.config import Label, number_as_text
from medseg.project import UserError, findings, safe_name

# DICOM's value representations LO and SH (PS3.5 6.2): characters, without backslash
LongText = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\\]*$")]
ShortText = Annotated[str, Field(min_length=1, max_length=16, pattern=r"^[^\\]*$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Code(_Model):
    """A coded concept (PS3.3 8.8), such as SCT 78961009 "Spleen"."""

    code: Annotated[ShortText, BeforeValidator(number_as_text)]  # SNOMED's are numbers to YAML
    scheme: ShortText
    meaning: LongText


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
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'not of the form {{"selections": [...]}} ({error})') from None
        if not isinstance(selections, list) or not selections:
            raise ValueError('not of the form {"selections": [...]} (no selection)')
        for selection in selections:
            conditions = selection.get("conditions") if isinstance(selection, dict) else None
            if not isinstance(conditions, dict) or not conditions:
                raise ValueError("every selection needs conditions")
            unknown = [str(key) for key in selection if key not in ("name", "conditions")]
            if unknown:
                raise ValueError(
                    f"a selection has name and conditions, but no {', '.join(unknown)}"
                )
            for keyword, rule in conditions.items():
                _check_condition(keyword, rule)
        return text

    @property
    def selections(self) -> list[dict[str, Any]]:
        """The selections of the rules; empty without rules."""
        return json.loads(self.rules_text)["selections"] if self.rules_text else []


_OWN_ATTRIBUTES = (
    "row_pixel_spacing",
    "col_pixel_spacing",
    "depth_pixel_spacing",
    "row_direction_cosine",
    "col_direction_cosine",
    "depth_direction_cosine",
    "dicom_affine_transform",
    "nifti_affine_transform",
)
"""What MONAI Deploy's series selector knows of a series beside DICOM's attributes."""

_NUMBERS = ("DS", "FD", "FL", "IS", "SL", "SS", "SV", "UL", "US", "UV")
"""DICOM's value representations (PS3.5 6.2) that are numbers."""

_RELATIONS = (">", ">=", "<", "<=", "!=")


def _check_condition(keyword: str, rule: Any) -> None:
    """Checks one condition of a selection, as MONAI Deploy's series selector will read it.

    The selector itself would fail on the first series that has the attribute, with a traceback.

    Raises:
        ValueError: The attribute does not exist, or the rule is none for its values.
    """
    # not at the top: the builder image has no pydicom
    from pydicom.datadict import dictionary_VM, dictionary_VR, tag_for_keyword

    if keyword in _OWN_ATTRIBUTES:
        return
    if tag_for_keyword(keyword) is None:
        raise ValueError(
            f"{keyword} is no DICOM attribute (keywords are such as SeriesDescription)"
        )
    if isinstance(rule, bool) or not isinstance(rule, str | int | float | list | None):
        raise ValueError(f"{keyword}: {rule!r} must be a text, a number or a list")
    if keyword == "ImageOrientationPatient":
        if str(rule).strip().capitalize() not in ("Axial", "Coronal", "Sagittal"):
            raise ValueError(f"{keyword}: {rule!r} must be Axial, Coronal or Sagittal")
    elif dictionary_VM(keyword) != "1":
        pass  # of several values: a text is looked for among them, a list's items each
    elif isinstance(rule, str):
        try:
            re.compile(rule)
        except re.error as error:
            raise ValueError(f"{keyword}: {rule!r} is no regular expression ({error})") from None
    elif rule and dictionary_VR(keyword) not in _NUMBERS:
        raise ValueError(f'{keyword}: {rule!r} must be a text, such as "{rule}"')
    elif isinstance(rule, list) and not (
        len(rule) == 2
        and isinstance(rule[0], int | float)
        and (isinstance(rule[1], int | float) or rule[1] in _RELATIONS)
    ):
        raise ValueError(
            f"{keyword}: {rule!r} must be [least, most] or [number, relation], the relation one "
            f"of {' '.join(_RELATIONS)}"
        )


class SegmentationTask(_Model):
    """One task of the file.

    Attributes:
        name: The task's name.
        modalities: The input channels by name. Where the names are those of the model's channels,
            these decide which is which, otherwise their order does.
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

    @property
    def file_name(self) -> str:
        """The task's name as a file or folder may be called."""
        return safe_name(self.name, ascii_only=True) or "model"

    def check_model(
        self, labels: Mapping[str, Label], channels: Sequence[str], where: str
    ) -> tuple[str, ...]:
        """Checks that the task is about this model.

        Args:
            labels: The model's label names and values; 0 is background.
            channels: Names of its input channels, in their order.
            where: The task file, for the message.

        Returns:
            The modalities in the order of the model's channels.

        Raises:
            UserError: The segments are not the model's labels, or the modalities not its channels.
        """
        names = {name.casefold(): name for name, value in labels.items() if value}
        segments = {item.segment_label.casefold(): item.segment_label for item in self.segments}
        foreign = [segments[key] for key in segments if key not in names]
        missing = [names[key] for key in names if key not in segments]
        if foreign or missing:
            problems = [f"{', '.join(foreign)}: no label of the model"] if foreign else []
            problems += [f"{', '.join(missing)}: without a segment"] if missing else []
            raise UserError(
                f"{where}: the Segments of task {self.name} do not match the model's labels "
                f"({', '.join(names.values())}): {'; '.join(problems)}."
            )
        if len(self.modalities) != len(channels):
            raise UserError(
                f"{where}: task {self.name} has {len(self.modalities)} modalities "
                f"({', '.join(self.modalities)}), but the model has {len(channels)} input channels "
                f"({', '.join(channels)}): list one modality a channel."
            )
        modalities = {name.casefold(): name for name in self.modalities}
        wanted = [name.casefold() for name in channels]
        if set(modalities) == set(wanted) and len(modalities) == len(wanted):
            return tuple(modalities[name] for name in wanted)
        for number, name in enumerate(self.modalities, start=1):
            places = [place for place, key in enumerate(wanted, start=1) if key == name.casefold()]
            if places and number not in places:
                raise UserError(
                    f"{where}: modality {name} of task {self.name} stands at place {number}, but "
                    f"is the model's channel {places[0]} of {', '.join(channels)}: name every "
                    "modality as its channel, or list them in the model's order."
                )
        return tuple(self.modalities)


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
        wrong = findings(error, SegmentationTask)
        raise UserError(f"the segmentation task file {path}, task {name}: {wrong}.") from None
