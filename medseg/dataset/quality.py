"""The quality table of a dataset that was converted from DICOM, and the dataset as a whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg import __version__
from medseg.config import DEFAULT_SUFFIXES, LABEL_KEY, TaskConfig
from medseg.dataset.folders import dataset_folder
from medseg.dataset.layouts import DESCRIPTION, cases_in
from medseg.imaging import Volume
from medseg.project import (
    DataRoot,
    Manifest,
    UserError,
    progress,
    read_json,
    result,
    write_json,
)

CONVERSION = "dicom_to_nifti"
"""The name of a converted case's manifest; its result is the case's row of the quality table."""

QUALITY = "quality"
"""The field of ``dataset.json`` that holds the table."""

LEFT_OUT = "left_out"
"""The name of the manifests that hold what a shard left out."""


@dataclass(frozen=True)
class QualityRow:
    """What the quality table says of one case.

    Attributes:
        case: The case identifier.
        size: Voxels along i, j, k.
        spacing: Millimetres along i, j, k, to a ten-thousandth.
        orientation: Where i, j, k grow to, as letters in RAS.
        intensity: Smallest and largest value of the (first) image; HU for CT.
        labels: Structures of the label map to their values; empty where there is no label.
        volumes_ml: Structures to their volume in millilitres.
        warnings: What a person should look at.
    """

    case: str
    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    orientation: str
    intensity: tuple[float, float]
    labels: dict[str, int] = field(default_factory=dict)
    volumes_ml: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @classmethod
    def measured(
        cls,
        case: str,
        image: Volume,
        label: NDArray[Any] | None,
        values: Mapping[str, int],
        warnings: Sequence[str] = (),
        regions: Mapping[str, Sequence[int]] | None = None,
    ) -> QualityRow:
        """The row of a case.

        Args:
            case: The case identifier.
            image: Its first image.
            label: Its label map on the grid of the image; None where there is none.
            values: Structures of the label map to their values.
            warnings: What the conversion remarked; an empty structure is added here.
            regions: Names of regions to all their values; case does not count.
        """
        millilitres = float(np.prod(image.spacing)) / 1000
        whole = {name.casefold(): own for name, own in (regions or {}).items()}
        voxels = {
            name: int(np.isin(label, whole.get(name.casefold(), [value])).sum())
            for name, value in values.items()
            if label is not None
        }
        empty = [f"{name} is empty" for name, count in voxels.items() if not count]
        i, j, k = (round(value, 4) for value in image.spacing)
        return cls(
            case=case,
            size=image.shape,
            spacing=(i, j, k),
            orientation=image.orientation,
            intensity=(float(image.array.min()), float(image.array.max())),
            labels=dict(values),
            volumes_ml={name: round(count * millilitres, 3) for name, count in voxels.items()},
            warnings=(*warnings, *empty),
        )

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> QualityRow:
        """The row that :meth:`to_json` made JSON of.

        Raises:
            KeyError, TypeError, ValueError: It is no such row.
        """
        (i, j, k), (x, y, z) = content["size"], content["spacing"]
        low, high = content["intensity"]
        return cls(
            case=str(content["case"]),
            size=(int(i), int(j), int(k)),
            spacing=(float(x), float(y), float(z)),
            orientation=str(content["orientation"]),
            intensity=(float(low), float(high)),
            labels=dict(content["labels"]),
            volumes_ml=dict(content["volumes_ml"]),
            warnings=tuple(content["warnings"]),
        )

    def to_json(self) -> dict[str, Any]:
        """The row as a JSON object, its fields named as here."""
        return {**asdict(self), "size": list(self.size), "spacing": list(self.spacing)} | {
            "intensity": list(self.intensity),
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class LeftOutRow:
    """What the quality table says of something that became no case.

    Attributes:
        left_out: What it is: a file, a study's case, a case that failed.
        warnings: Why.
    """

    left_out: str
    warnings: tuple[str, ...]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> LeftOutRow:
        """The row that :meth:`to_json` made JSON of.

        Raises:
            KeyError, TypeError, ValueError: It is no such row.
        """
        return cls(str(content["left_out"]), tuple(map(str, content["warnings"])))

    def to_json(self) -> dict[str, Any]:
        """The row as a JSON object, its fields named as here."""
        return {"left_out": self.left_out, "warnings": list(self.warnings)}


def record_left_out(folder: Path, shard: int, rows: Sequence[LeftOutRow], failed: int) -> None:
    """Remembers what a shard left out, in place of what it left out before.

    Args:
        folder: The dataset's folder.
        shard: The shard's number.
        rows: What it left out.
        failed: How many of them are cases that failed.
    """
    content = {"rows": [row.to_json() for row in rows], "failed": failed}
    write_json(_left_out_file(folder, shard), content)


def forget_left_out(folder: Path) -> None:
    """Removes what :func:`record_left_out` remembered, of all shards."""
    for path in folder.glob(f".medseg/{LEFT_OUT}-*.json"):
        path.unlink()


def failed_cases(folder: Path) -> int:
    """How many cases of a dataset failed, in all shards that have been converted."""
    return _read_left_out(folder)[1]


def _left_out_file(folder: Path, shard: int) -> Path:
    return folder / ".medseg" / f"{LEFT_OUT}-{shard}.json"


def _read_left_out(folder: Path) -> tuple[list[LeftOutRow], int]:
    """What the shards left out, and how many cases of it failed."""
    rows, failed = [], 0
    for path in sorted(folder.glob(f".medseg/{LEFT_OUT}-*.json")):
        try:
            content = read_json(path)
            rows += [LeftOutRow.from_json(row) for row in content["rows"]]
            failed += int(content["failed"])
        except (AttributeError, KeyError, TypeError, ValueError):
            raise UserError(
                f"{path} is damaged: delete it, and run the stage convert_studies again."
            ) from None
    return sorted(rows, key=lambda row: row.left_out), failed


def read_quality(folder: Path) -> list[QualityRow]:
    """The quality table that :func:`collect_dataset` wrote.

    Args:
        folder: The dataset's folder.

    Returns:
        The rows of the cases, by case; none where the dataset was not converted by this project.

    Raises:
        UserError: ``dataset.json`` is damaged.
    """
    path = folder / DESCRIPTION
    try:
        table = read_json(path, {}).get(QUALITY, ())
        rows = [QualityRow.from_json(row) for row in table if LEFT_OUT not in row]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(
            f"{path}: {QUALITY!r} is not a quality table: run the stage collect_dataset again."
        ) from None
    return sorted(rows, key=lambda row: row.case)


def collect_dataset(
    root: DataRoot, output_folder: str = "", *, config: TaskConfig | None = None
) -> dict[str, Any]:
    """Gathers what the shards converted, and what they left out, into ``<output>/dataset.json``.

    A config's dataset that was NIfTI from the beginning is described, and nothing is written.

    Args:
        root: The data root.
        output_folder: The dataset's folder; by default the config's ``data_dir``.
        config: The task that the studies were converted with.

    Returns:
        ``dataset`` (the content of dataset.json but the table: cases, channel suffixes, labels),
        ``metadata`` (the same for an artifact: how many cases in place of which), ``rows`` (the
        quality table, a :class:`QualityRow` a case), ``left_out`` (the rest of the table, a
        :class:`LeftOutRow` for all that became no case) and ``html`` (the table as a fragment).

    Raises:
        UserError: The folder holds no converted case (the table of what was left out is written
            all the same), or a record that is none of ours.
    """
    folder = dataset_folder(root, output_folder, config)
    rows = _converted_rows(folder)
    left_out, failed = _read_left_out(folder)
    as_it_was = [] if rows or left_out or config is None else cases_in(folder, config.modality_dict)
    if not rows and not left_out and not as_it_was:
        raise UserError(f"{folder} holds no converted case: run dicom_to_nifti on it first.")
    labels: dict[str, Any] = dict(config.labels) if config else {}
    if config is None:
        labels, rows = _agreed(rows)
    suffixes = config.modality_dict if config else DEFAULT_SUFFIXES
    dataset = {
        "name": config.experiment_name if config else folder.name,
        "channels": {key: suffix for key, suffix in suffixes.items() if key != LABEL_KEY},
        "label_suffix": suffixes[LABEL_KEY],
        "labels": labels,
        "cases": [row.case for row in rows] + [case.name for case in as_it_was],
        "cases_without_label": [row.case for row in rows if not row.labels]
        + [case.name for case in as_it_was if not case.label.is_file()],
        "medseg_version": __version__,
    }
    table = [*(row.to_json() for row in rows), *(row.to_json() for row in left_out)]
    if not as_it_was:
        write_json(folder / DESCRIPTION, {**dataset, QUALITY: table})
    if not rows and not as_it_was:
        raise UserError(
            f"{folder} holds no converted case, as {len(left_out)} files and studies were left "
            f"out: {DESCRIPTION} there says why."
        )
    warned = sum(bool(row.warnings) for row in rows)
    lost = f"; {len(left_out)} files and studies left out, {failed} of them failed cases"
    progress(f"{len(dataset['cases'])} cases, {warned} with warnings{lost if left_out else ''}")
    result("NIfTI dataset", folder)
    metadata = {
        **dataset,
        "cases": len(dataset["cases"]),
        "cases_without_label": len(dataset["cases_without_label"]),
    }
    return {
        "dataset": dataset,
        "metadata": metadata,
        "rows": rows,
        "left_out": left_out,
        "html": _table(rows, left_out),
    }


def _converted_rows(folder: Path) -> list[QualityRow]:
    rows = []
    for path in sorted(folder.glob(f"*/.medseg/{CONVERSION}.json")):
        try:
            record = Manifest(path.parent.parent, CONVERSION).read().get("result")
            if record:
                rows.append(QualityRow.from_json(record))
        except (AttributeError, KeyError, TypeError, ValueError):
            raise UserError(
                f"{path} is no record of a converted case: delete it, and run dicom_to_nifti again."
            ) from None
    return rows


def _agreed(rows: Sequence[QualityRow]) -> tuple[dict[str, int], list[QualityRow]]:
    """What most cases call each value, and the rows with a warning where a case disagrees."""
    names: dict[int, Counter[str]] = {}
    for row in rows:
        for name, value in row.labels.items():
            names.setdefault(value, Counter())[name] += 1
    agreed = {value: counts.most_common(1)[0][0] for value, counts in sorted(names.items())}
    warned = []
    for row in rows:
        different = [
            f"label {value} is {name!r} here but {agreed[value]!r} in most cases: give a config, "
            "whose labels then decide by name"
            for name, value in row.labels.items()
            if name != agreed[value]
        ]
        warned.append(replace(row, warnings=(*row.warnings, *different)))
    return {"background": 0, **{name: value for value, name in agreed.items()}}, warned


def _table(rows: Sequence[QualityRow], left_out: Sequence[LeftOutRow]) -> str:
    import jinja2  # composing pipelines imports this room, without the stages' packages

    template = files("medseg.dataset").joinpath("quality.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(template).render(rows=rows, left_out=left_out)
