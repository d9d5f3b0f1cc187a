"""What is remembered of patients is for its owner alone, after every stage."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pynetdicom import AE, evt
from pynetdicom.sop_class import CTImageStorage, SegmentationStorage, Verification

from medseg.dataset import collect_dataset
from medseg.dicom import convert_studies, list_studies, nifti_to_dicom
from medseg.imaging import write_nifti
from medseg.project import DataRoot


@pytest.fixture
def node() -> Iterator[str]:
    """A DICOM node that takes what it is sent."""
    entity = AE(ae_title="TAKER")
    for sop_class in (CTImageStorage, SegmentationStorage, Verification):
        entity.add_supported_context(sop_class)
    taken = [(evt.EVT_C_STORE, lambda _: 0x0000)]
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=taken)
    assert server is not None
    try:
        yield f"dicom://TAKER@127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()


@pytest.fixture
def open_umask() -> Iterator[None]:
    """Whatever is not closed by us is open to all."""
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)


def modes(root: DataRoot) -> dict[str, int]:
    folder = root.path / ".medseg" / "dicom"
    return {
        path.relative_to(folder.parent).as_posix(): stat.S_IMODE(path.stat().st_mode)
        for path in [folder, *folder.rglob("*")]
    }


@pytest.mark.usefixtures("open_umask")
@pytest.mark.parametrize("before", ["nothing", "an open folder"])
def test_every_mode_after_every_stage(root: DataRoot, node: str, before: str) -> None:
    if before == "an open folder":  # an earlier version left it so
        (root.path / ".medseg" / "dicom").mkdir(parents=True)
    image = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    for case in ("a", "b"):
        write_nifti(image, np.eye(4), root.path / f"in/{case}/{case}_image.nii.gz")
        label = (image > 9).astype(np.uint8)
        write_nifti(label, np.eye(4), root.path / f"in/{case}/{case}_label.nii.gz")

    def check(*kinds: str) -> None:
        seen = modes(root)
        for name, mode in seen.items():
            folder = Path(root.path, ".medseg", name).is_dir()
            assert oct(mode) == oct(0o700 if folder else 0o600), name
        for kind in kinds:
            assert any(name.startswith(f"dicom/{kind}") for name in seen), seen

    # as the pipelines do it: to a folder, to a node, and back from the folder
    assert nifti_to_dicom(root, "in", "DICOM", modality="CT").written == ("a", "b")
    if before == "nothing":
        assert not (root.path / ".medseg" / "dicom").exists()
    (shard,) = list_studies(root, "DICOM", "out")
    check("index-", "cases-", "shards-")
    convert_studies(root, "DICOM", shard, "out", deidentify=True)
    check("pseudonym.key")
    collect_dataset(root, "out")
    check()
    assert nifti_to_dicom(root, "in", node, modality="CT").written == ("a", "b")
    assert nifti_to_dicom(root, "in", node, modality="CT").written == ()
    check("sent-")
