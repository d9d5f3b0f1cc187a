"""Shards: the studies of a source, dealt into lists that lie on the volume.

A PACS may hold thousands of studies, more than a pipeline parameter should carry.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medseg.config import TaskConfig
from medseg.dicom.cases import private_folder
from medseg.dicom.to_nifti import convert_studies, list_studies
from medseg.project import DataRoot, UserError, write_json


def deal_studies(root: DataRoot, studies: str, output_folder: str, *, shards: int = 1) -> list[int]:
    """Lists the studies of a source and writes the shards' lists to the data root's private folder.

    Args:
        root: The data root.
        studies: As in :func:`medseg.dicom.list_studies`.
        output_folder: The dataset's folder.
        shards: Into how many lists to deal the studies.

    Returns:
        The numbers of the shards, from 0.

    Raises:
        UserError: As :func:`medseg.dicom.list_studies`.
    """
    lists = list_studies(root, studies, output_folder, shards=shards)
    write_json(_path(root, output_folder), lists)
    return list(range(len(lists)))


def convert_shard(
    root: DataRoot,
    studies: str,
    shard: int,
    output_folder: str,
    *,
    config: TaskConfig | None = None,
    deidentify: bool = False,
) -> dict[str, Any]:
    """Converts the studies of one shard; see :func:`medseg.dicom.convert_studies`.

    Args:
        root: The data root.
        studies: The source that was dealt.
        shard: The shard's number.
        output_folder: The dataset's folder.
        config: The task, for suffixes, channels and labels.
        deidentify: Whether cases get pseudonyms instead of PatientIDs.

    Raises:
        UserError: The studies were not listed, or there is no such shard; and as
            :func:`medseg.dicom.convert_studies`.
    """
    path = _path(root, output_folder)
    try:
        uids = json.loads(path.read_text(encoding="utf-8"))[shard]
    except (FileNotFoundError, IndexError):
        raise UserError(f"{path} holds no shard {shard}: run list_studies first.") from None
    return convert_studies(root, studies, uids, output_folder, config=config, deidentify=deidentify)


def _path(root: DataRoot, output_folder: str) -> Path:
    # it holds StudyInstanceUIDs, so it does not lie inside a dataset that may be de-identified
    folder = root.relative(root.resolve(output_folder, field="output_folder"))
    return private_folder(root) / f"shards-{folder.replace('/', '-')}.json"
