"""The converted dataset as a whole: its manifest and its quality table."""

from __future__ import annotations

import html
from collections import Counter
from typing import Any

from medseg import __version__
from medseg.config import DEFAULT_SUFFIXES, LABEL_KEY, TaskConfig
from medseg.dataset.folders import dataset_folder
from medseg.project import DataRoot, Manifest, UserError, progress, result, write_json

CONVERSION = "dicom_to_nifti"
"""The name of a converted case's manifest; its result is the case's row of the quality table."""


def collect_dataset(
    root: DataRoot, output_folder: str = "", *, config: TaskConfig | None = None
) -> dict[str, Any]:
    """Gathers what the shards converted into ``<output>/dataset.json``.

    Args:
        root: The data root.
        output_folder: The dataset's folder; by default the config's ``data_dir``.
        config: The task that the studies were converted with.

    Returns:
        ``dataset`` (the content of dataset.json: cases, channel suffixes, labels), ``metadata``
        (the same for an artifact: how many cases in place of which), ``rows`` (the quality table:
        case, size in voxels, spacing in mm, orientation as nibabel's axis codes in RAS, intensity
        range, label volumes in ml, warnings) and ``html`` (the table as a fragment).

    Raises:
        UserError: The folder holds no converted case.
    """
    folder = dataset_folder(root, output_folder, config)
    records = [Manifest(path.parent.parent, CONVERSION).read() for path in _manifests(folder)]
    rows = [record["result"] for record in records if record.get("result")]
    if not rows:
        raise UserError(f"{folder} holds no converted case: run dicom_to_nifti on it first.")
    labels: dict[str, Any] = dict(config.labels) if config else _agreed_labels(rows)
    suffixes = config.modality_dict if config else DEFAULT_SUFFIXES
    dataset = {
        "name": config.experiment_name if config else folder.name,
        "channels": {key: suffix for key, suffix in suffixes.items() if key != LABEL_KEY},
        "label_suffix": suffixes[LABEL_KEY],
        "labels": labels,
        "cases": [row["case"] for row in rows],
        "cases_without_label": [row["case"] for row in rows if not row["labels"]],
        "medseg_version": __version__,
    }
    write_json(folder / "dataset.json", {**dataset, "quality": rows})
    warned = sum(bool(row["warnings"]) for row in rows)
    progress(f"{len(rows)} cases, {warned} with warnings")
    result("NIfTI dataset", folder)
    metadata = {
        **dataset,
        "cases": len(dataset["cases"]),
        "cases_without_label": len(dataset["cases_without_label"]),
    }
    return {"dataset": dataset, "metadata": metadata, "rows": rows, "html": _table(rows)}


def _manifests(folder: Any) -> list[Any]:
    return sorted(folder.glob(f"*/.medseg/{CONVERSION}.json"))


def _agreed_labels(rows: list[dict[str, Any]]) -> dict[str, int]:
    """What most cases call each value; a case that disagrees gets a warning in its row."""
    names: dict[int, Counter[str]] = {}
    for row in rows:
        for name, value in row["labels"].items():
            names.setdefault(value, Counter())[name] += 1
    agreed = {value: counts.most_common(1)[0][0] for value, counts in sorted(names.items())}
    for row in rows:
        for name, value in row["labels"].items():
            if name != agreed[value]:
                row["warnings"].append(
                    f"label {value} is {name!r} here but {agreed[value]!r} in most cases: "
                    "give a config, whose labels then decide by name"
                )
    return {"background": 0, **{name: value for value, name in agreed.items()}}


def _table(rows: list[dict[str, Any]]) -> str:
    head = ("Case", "Size", "Spacing (mm)", "Axes", "Intensities", "Labels (ml)", "Warnings")
    lines = []
    for row in rows:
        cells = (
            row["case"],
            " x ".join(map(str, row["size"])),
            " x ".join(f"{value:.3g}" for value in row["spacing"]),
            row["orientation"],
            " to ".join(f"{value:.5g}" for value in row["intensity"]),
            ", ".join(f"{name}: {volume:.4g}" for name, volume in row["volumes_ml"].items()),
            "; ".join(row["warnings"]),
        )
        lines.append("".join(f"<td>{html.escape(cell)}</td>" for cell in cells))
    header = "".join(f"<th>{cell}</th>" for cell in head)
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table>\n<thead><tr>{header}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n"
