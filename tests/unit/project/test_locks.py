"""Which volumes keep the locks of each node to themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from medseg.project import unshared_locks

HEAD = "22 1 0:21 / / rw,relatime - overlay overlay rw,lowerdir=/a"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("- ext4 /dev/sda1 rw", ""),
        ("- nfs4 nas:/data rw,vers=4.2,local_lock=none,addr=10.0.0.2", ""),
        ("shared:5 - nfs nas:/data rw,vers=3,nolock,local_lock=all", "nfs, mounted with local_"),
        ("- nfs nas:/data rw,vers=3,nolock", "nfs, mounted with nolock"),
        ("- cifs //files/data rw,vers=3.1.1,nobrl", "cifs, mounted with nobrl"),
        ("- cifs //files/data rw,vers=3.1.1", ""),
        ("- lustre fs@tcp:/data rw,flock", ""),
        ("- lustre fs@tcp:/data rw,noflock", "lustre, mounted with noflock"),
        ("- ceph 10.0.0.1:/ rw", ""),
        ("- fuse.s3fs s3fs rw,user_id=0", "fuse.s3fs"),
        ("- fuse.glusterfs gl:/data rw", ""),
    ],
)
def test_kinds_of_volumes(tmp_path: Path, line: str, expected: str) -> None:
    place = tmp_path / "my data"
    (place / "Task").mkdir(parents=True)
    table = tmp_path / "mounts"
    mounted = f"30 22 0:31 / {str(place).replace(' ', chr(92) + '040')} rw,relatime {line}"
    table.write_text(f"{HEAD}\n{mounted}\n")
    found = unshared_locks(place / "Task", table)
    assert found.startswith(expected)
    assert bool(found) is bool(expected)
    assert unshared_locks(tmp_path, table) == ""  # another volume
    (tmp_path / "link").symlink_to(place)
    assert unshared_locks(tmp_path / "link", table) == found


def test_a_mount_over_another_and_no_table(tmp_path: Path) -> None:
    table = tmp_path / "mounts"
    below = f"30 22 0:31 / {tmp_path} rw - nfs nas:/data rw,nolock"
    table.write_text(f"{HEAD}\n{below}\n31 30 0:32 / {tmp_path} rw - tmpfs tmpfs rw\n")
    assert unshared_locks(tmp_path, table) == ""
    assert unshared_locks(tmp_path, tmp_path / "missing") == ""
    assert unshared_locks(tmp_path) == ""  # this machine's own
