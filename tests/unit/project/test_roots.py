from pathlib import Path

import pytest

from medseg.project import DataRoot, UserError


@pytest.mark.parametrize("given", ["NIFTI/a", "/mnt/Data/NIFTI/a", "./NIFTI/b/../a", " NIFTI/a "])
def test_paths_mean_the_same_place(root: DataRoot, given: str) -> None:
    assert root.resolve(given) == root.path / "NIFTI" / "a"


def test_absolute_path_inside_the_root(root: DataRoot) -> None:
    assert root.resolve(root.path / "x") == root.path / "x"
    assert root.relative(root.path / "x" / "y") == "x/y"


@pytest.mark.parametrize(
    "given", ["..", "../other", "/mnt/Data/../etc", "/etc/passwd", "a/../../b"]
)
def test_paths_that_leave_the_root_are_refused(root: DataRoot, given: str) -> None:
    with pytest.raises(UserError, match=r"data_dir: .* lies outside the data root"):
        root.resolve(given, field="data_dir")


def test_symbolic_link_that_leaves_the_root_is_refused(root: DataRoot, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (root.path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="lies outside the data root"):
        root.resolve("link/file")


def test_empty_path_and_missing_root(root: DataRoot, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="output is empty"):
        root.resolve("", field="output")
    with pytest.raises(UserError, match="is not a folder: create it, or name another one"):
        DataRoot.at(tmp_path / "nowhere")


def test_the_address_of_an_artifact_says_where_it_lies(root: DataRoot) -> None:
    for place in ("NIFTI/Task 9", "/mnt/Data/NIFTI/Task 9", root.path / "NIFTI/Task 9"):
        assert root.address(place) == "file:///mnt/Data/NIFTI/Task%209"
    assert root.address("file:///mnt/Data/DICOM") == "file:///mnt/Data/DICOM"
    for url in ("https://pacs.example.org/dicom-web", "dicom://AE@host:104"):
        assert root.address(url) == url
    with pytest.raises(UserError):
        root.address("../elsewhere")
