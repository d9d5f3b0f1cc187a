"""The bundle's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medseg.bundle.metadata import build_metadata, metadata_path
from medseg.bundle.monai_config import inference_yaml
from medseg.config import TaskConfig
from medseg.project import progress, write_json, write_text

LICENSE = """\
{copyright}

This file states the terms of the model in this folder: its weights, its configuration and its
documentation. Nobody has chosen a licence yet, so all rights are reserved. Replace this text with
the terms under which the model may be used; it is not overwritten.
"""

README = """\
# {name}

{description}

{task}. {intended_use}

| | |
|---|---|
| Version | {version} |
| Authors | {authors} |
| Copyright | {copyright} |
| Data | {data_source} |
| Input | {image_classes} |
| Output | {pred_classes} |
| Patch of the network | {patch} voxels (nnU-Net's axis order: slices first) |
| Made with | MONAI {monai_version}, PyTorch {pytorch_version}, {packages} |

## Validation

{validation}

## Use

All images of a folder, in this folder (`CASE.nii.gz`; with several channels `CASE_0000.nii.gz`,
`CASE_0001.nii.gz`, …):

```
python -m monai.bundle run --config_file configs/inference.yaml \\
  --dataset_dir IMAGES --output_dir SEGMENTATIONS
```

One file that carries network, metadata and configuration is `models/fold_{fold}/model.ts`:

```
medseg segment IMAGE_OR_FOLDER --model models/fold_{fold}/model.ts -o OUTPUT
```

## Files

- `configs/metadata.json`: what the model is (this page is made from it; to change either, set
  `bundle_config.metadata_file` in the task's config).
- `configs/inference.yaml`: how it runs.
- `models/plans.json`, `dataset.json`, `nnunet_checkpoint.pth`: nnU-Net's description of it.
- `models/fold_F/`: `checkpoint_epoch=N.pt` (last), `checkpoint_key_metric=V.pt` (best),
  `model.pt` (the one that is packaged), `model.ts`.

## References

{references}
"""


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
    (folder / "models").mkdir(parents=True, exist_ok=True)
    channels = metadata["network_data_format"]["inputs"]["image"]["num_channels"]
    write_text(folder / "configs" / "inference.yaml", inference_yaml(channels, config.fold))
    write_metadata(config, metadata)
    if not (folder / "LICENSE").exists():
        copyright_line = f"Copyright (c) {metadata['copyright']}"
        write_text(folder / "LICENSE", LICENSE.format(copyright=copyright_line))
    progress(f"bundle {config.root.relative(folder)}: metadata, inference configuration, docs")
    return folder


def write_metadata(config: TaskConfig, metadata: Mapping[str, Any]) -> None:
    """Writes ``configs/metadata.json`` and the page that is made from it, ``docs/README.md``."""
    write_json(metadata_path(config), metadata)
    write_text(config.bundle_folder / "docs" / "README.md", _readme(metadata, config.fold))


def _readme(metadata: Mapping[str, Any], fold: int | str) -> str:
    measures = metadata["eval_metrics"]
    rows = [f"| {name} | {value} |" for name, value in measures.items()]
    packages = metadata["required_packages_version"].items()
    references = metadata["references"]
    return README.format(
        **{
            **metadata,
            "fold": fold,
            "patch": " x ".join(
                map(str, metadata["network_data_format"]["inputs"]["image"]["spatial_shape"])
            ),
            "packages": ", ".join(f"{name} {number}" for name, number in packages),
            "validation": "\n".join(["| measure | value |", "|---|---|", *rows])
            if rows
            else "Not validated yet.",
            "references": "\n".join(f"- {reference}" for reference in references),
        }
    )
