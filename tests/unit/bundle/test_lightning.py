"""convert_ckpt_to_pt and medseg convert, on files that Lightning itself has written."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from medseg.bundle import convert_ckpt_to_pt, convert_pt_to_ts, model_file, segment
from medseg.bundle.converting import convert_model
from medseg.bundle.lightning import LightningName
from medseg.bundle.torchscript import load_network
from medseg.cli import main
from medseg.config import TaskConfig
from medseg.nnunet import TrainedFold, load_checkpoint, predict_validation, train
from medseg.nnunet.models import read_model
from medseg.project import UserError

WRITER = Path(__file__).with_name("lightning_training.py")

Configure = Callable[..., TaskConfig]


@pytest.fixture(scope="module")
def trainings(trained: TaskConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Lightning has left of trainings of the network in several wrappers."""
    folder = tmp_path_factory.mktemp("lightning")
    plans = trained.preprocessed_folder / "nnUNetPlans.json"
    command = [sys.executable, str(WRITER), str(plans), str(plans.with_name("dataset.json"))]
    done = subprocess.run(
        [*command, trained.configuration, str(folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for training in folder.iterdir():
        assert {path.name for path in training.iterdir()} == {
            "epoch=0-Val_Dice=1.00.ckpt", "epoch=1.ckpt", "last.ckpt",
        }  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def files(trainings: Path) -> Path:
    """Of a compiled network, which is what MAIA trains."""
    return trainings / "compiled"


@pytest.fixture
def project(trained: TaskConfig, tmp_path: Path, configure: Configure) -> TaskConfig:
    """A data root that is preprocessed, and where nothing is trained."""
    source = trained.root.path
    skip = shutil.ignore_patterns("nnUNet_trained_models", "bundle", "mlflow.db", "mlartifacts")
    shutil.copytree(source, tmp_path / "root", ignore=skip)
    return configure(tmp_path / "root")


def place(files: Path, config: TaskConfig, *names: str) -> Path:
    folder = config.bundle_folder / "models" / f"fold_{config.fold}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or [path.name for path in files.iterdir()]:
        shutil.copy(files / name, folder)
    return folder


def test_later_stages_go_on_as_after_train(files: Path, project: TaskConfig) -> None:
    folder = place(files, project)
    converted = convert_ckpt_to_pt(project)
    assert (converted.last, converted.best) == ("last.ckpt", "epoch=0-Val_Dice=1.00.ckpt")
    assert (converted.epochs, converted.best_dice) == (2, 1.0)
    names = {"checkpoint_epoch=2.pt", "checkpoint_key_metric=1.0000.pt", "model.pt"}
    assert names <= {path.name for path in folder.iterdir()}
    assert {"plans.json", "dataset.json", "nnunet_checkpoint.pth", "model.pt"} <= {
        path.name for path in folder.parent.iterdir()
    }
    last = torch.load(files / "last.ckpt", weights_only=True)["state_dict"]
    final = load_checkpoint(project.fold_folder() / "checkpoint_final.pth")
    for name, value in last.items():
        assert torch.equal(final["network_weights"][name.removeprefix("network._orig_mod.")], value)
    assert final["optimizer_state"]["state"]  # Lightning's SGD goes on as nnU-Net's

    before = {path: path.stat().st_mtime_ns for path in project.fold_folder().glob("*.pth")}
    assert convert_ckpt_to_pt(project) == converted
    assert {path: path.stat().st_mtime_ns for path in before} == before

    predict_validation(project)
    assert list((project.fold_folder() / "validation").glob("*.nii.gz"))
    convert_pt_to_ts(project)
    network = load_network(folder / "model.pt")
    assert read_model(model_file(project)).weights.keys() == network.state_dict().keys()
    validate_only = project.model_copy(update={"run_validation_only": True})
    assert train(validate_only).epochs == 2  # as MAIA's users go on


def test_a_training_goes_on(files: Path, project: TaskConfig) -> None:
    """After the pipeline, started with the arguments of MAIA's users."""
    place(files, project)
    arguments = project.root.path / "arguments.json"
    arguments.write_text(json.dumps({"config_file_path": "config.yaml"}))
    root = str(project.root.path)
    command = ["run", "convert_ckpt_to_pt", "--data-root", root, "--args", str(arguments)]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    with contextlib.redirect_stdout(io.StringIO()):
        result = train(project.model_copy(update={"num_epochs": 3}))
    assert result.epochs == 3
    assert len(TrainedFold(project).history) == 3


def test_a_fold_trained_before_is_kept(files: Path, project: TaskConfig) -> None:
    folder = place(files, project, "epoch=1.ckpt")
    convert_ckpt_to_pt(project)
    (folder / "epoch=1.ckpt").unlink()
    place(files, project, "last.ckpt")
    shutil.copy(folder / "last.ckpt", folder / "last-v1.ckpt")
    converted = convert_ckpt_to_pt(project)
    assert (converted.last, converted.best_dice) == ("last-v1.ckpt", None)
    (kept,) = (project.results_folder / "superseded").iterdir()
    assert (kept / "checkpoint_final.pth").is_file()


@pytest.mark.parametrize("wrapped", ["plain", "ddp"])
def test_wrapped_networks(wrapped: str, trainings: Path, project: TaskConfig) -> None:
    place(trainings / wrapped, project)
    assert convert_ckpt_to_pt(project).epochs == 2


NAMES = {
    "epoch=9-Val_Dice=0.93": (9, "Val_Dice", 0.93, 0),
    "epoch=9-Val_Dice=0.93-v1": (9, "Val_Dice", 0.93, 1),
    "epoch=9-step=400": (9, "", 0.0, 0),
    "epoch=9-step=400-Val_loss=-0.5": (9, "Val_loss", -0.5, 0),
    "epoch=12-v2": (12, "", 0.0, 2),
    "last-v3": (None, "", 0.0, 3),
}


def test_names() -> None:
    for stem, expected in NAMES.items():
        name = LightningName.of(Path(f"{stem}.ckpt"))
        assert name is not None
        assert (name.epoch, name.metric, name.value, name.version) == expected
    for stem in ("best", "epoch=x", "Val_Dice=0.9", "copy of epoch=9"):
        assert LightningName.of(Path(f"{stem}.ckpt")) is None
    ranked = [
        LightningName.of(Path(f"epoch={text}.ckpt"))
        for text in ("4-Val_Dice=0.9", "3-Val_Dice=0.95", "5-Val_Dice=0.95", "5-Val_Dice=0.95-v1")
    ]
    assert [each.version for each in sorted(filter(None, ranked), key=lambda n: n.rank)][-1] == 1


def test_bad_files(files: Path, project: TaskConfig) -> None:
    with pytest.raises(UserError, match=r"holds no checkpoints of Lightning: put those of fold 0"):
        convert_ckpt_to_pt(project)
    folder = place(files, project, "last.ckpt")
    path = folder / "last.ckpt"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"last.ckpt cannot be read: it is truncated"):
        convert_ckpt_to_pt(project)
    content = torch.load(files / "last.ckpt", weights_only=True)
    torch.save(content | {"hyper_parameters": {"config": LightningName}}, path)
    with pytest.raises(UserError, match=r"pickled objects of [\w.]+LightningName"):
        convert_ckpt_to_pt(project)
    state = content["state_dict"]
    torch.save(content | {"state_dict": dict(list(state.items())[3:])}, path)
    with pytest.raises(UserError, match=r"weights of another network .* it lacks "):
        convert_ckpt_to_pt(project)
    wider = {
        name: torch.cat([value, value]) if value.dim() else value for name, value in state.items()
    }
    torch.save(content | {"state_dict": wider}, path)
    with pytest.raises(UserError, match=r"of other shapes are .* \(\d+"):
        convert_ckpt_to_pt(project)
    torch.save({"network_weights": state}, path)
    with pytest.raises(UserError, match=r"is no checkpoint of Lightning"):
        convert_ckpt_to_pt(project)
    assert not list(project.fold_folder().glob("*.pth"))


def test_convert_between_all_layouts(
    files: Path, trained: TaskConfig, image: Path, tmp_path: Path
) -> None:
    """model.ts -> nnU-Net -> bundle -> nnU-Net, and a Lightning file -> bundle."""
    source = model_file(trained)
    weights = read_model(source).weights
    made = convert_model(source, tmp_path / "first", "nnunet", fold=2)
    assert made.parent.name == "fold_2"
    bundled = convert_model(made, tmp_path / "bundle", "bundle")
    again = convert_model(bundled, tmp_path / "second", "nnunet")
    for path in (made, bundled, again):
        model = read_model(path)
        assert model.configuration == "tiny"
        assert all(torch.equal(model.weights[name], value) for name, value in weights.items())
    network = load_network(bundled)
    assert network.state_dict().keys() == weights.keys()

    shutil.copy(trained.results_folder / "plans.json", tmp_path)
    shutil.copy(trained.results_folder / "dataset.json", tmp_path)
    shutil.copy(files / "last.ckpt", tmp_path)
    command = ["convert", str(tmp_path / "last.ckpt"), "--to", "bundle", "-o", str(tmp_path / "b")]
    refused = CliRunner().invoke(main, command)
    assert refused.exit_code == 1
    assert "does not say which configuration of its plans it is" in refused.output
    done = CliRunner().invoke(main, [*command, "--configuration", "tiny"])
    assert done.exit_code == 0, done.output
    folder = tmp_path / "b" / "models" / "fold_0"
    assert {path.name for path in folder.iterdir()} == {"checkpoint_epoch=2.pt", "model.pt"}
    repeated = CliRunner().invoke(main, [*command, "--configuration", "tiny"])
    assert "is there already" in repeated.output

    # nnU-Net's own command reads what became of the packaged model
    cases = tmp_path / "cases"
    cases.mkdir()
    shutil.copy(image, cases / "case_0000.nii.gz")
    program = Path(sys.executable).with_name("nnUNetv2_predict_from_modelfolder")
    done_by_nnunet = subprocess.run(
        [program, "-i", cases, "-o", tmp_path / "out", "-m", made.parents[1], "-f", "2",
         "-device", "cpu", "-npp", "1", "-nps", "1", "--disable_tta"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done_by_nnunet.returncode == 0, done_by_nnunet.stderr[-3000:]
    segment(source, image, tmp_path / "ours.nii.gz", test_time_augmentation=False)
    import nibabel

    ours, theirs = (
        np.asarray(nibabel.load(path).dataobj)
        for path in (tmp_path / "ours.nii.gz", tmp_path / "out" / "case.nii.gz")
    )
    assert (ours != theirs).mean() < 1e-4
