"""The bundle's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medseg.bundle.metadata import build_metadata
from medseg.bundle.monai_config import inference_yaml
from medseg.bundle.paths import metadata_file, models_folder
from medseg.bundle.templates import render
from medseg.config import TaskConfig
from medseg.project import progress, write_json, write_text


def prepare_bundle(config: TaskConfig) -> Path:
    """Lays out the MONAI bundle, by MONAI's bundle specification; models come later.

    May be run again at any time: files are written anew from what is known by then (such as the
    validation Dice); an existing LICENSE and everything under ``models`` stay.

    Args:
        config: The task's config; its dataset is planned.

    Returns:
        The bundle's folder: ``configs/metadata.json``, ``configs/inference.yaml``,
        ``docs/README.md``, ``LICENSE``, ``models/``.

    Raises:
        UserError: The dataset is not planned yet, or the user's metadata file is unusable.
    """
    folder = config.bundle_folder
    metadata = build_metadata(config)
    models_folder(config).mkdir(parents=True, exist_ok=True)
    channels = metadata["network_data_format"]["inputs"]["image"]["num_channels"]
    write_text(folder / "configs" / "inference.yaml", inference_yaml(channels, config.default_fold))
    write_metadata(config, metadata)
    if not (folder / "LICENSE").exists():
        write_text(folder / "LICENSE", render("LICENSE.j2", copyright=metadata["copyright"]))
    progress(f"bundle {config.root.relative(folder)}: metadata, inference configuration, docs")
    return folder


def write_metadata(config: TaskConfig, metadata: Mapping[str, Any]) -> None:
    """Writes ``configs/metadata.json`` and the page that is made from it, ``docs/README.md``."""
    write_json(metadata_file(config), metadata)
    packages = [
        f"{name} {number}" for name, number in metadata["required_packages_version"].items()
    ]
    page = render("README.md.j2", **{**metadata, "fold": config.fold, "packages": packages})
    write_text(config.bundle_folder / "docs" / "README.md", page)
