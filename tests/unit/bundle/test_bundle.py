"""The bundle: what other tools find in it, and what they get from it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jsonschema
import nibabel
import numpy as np
import pytest
import torch

from medseg.bundle import (
    convert_pt_to_ts,
    export_checkpoint,
    model_file,
    prepare_bundle,
    segment,
)
from medseg.bundle.metadata import validation_dice
from medseg.bundle.torchscript import compare, load_network, load_packaged
from medseg.config import TaskConfig, load_config
from medseg.nnunet import load_checkpoint
from medseg.nnunet.preprocessing import example_patches
from medseg.nnunet.pretrained import first_weights
from medseg.project import DataRoot, UserError, write_json
from tests.volumes import Volume, contents

SCHEMA = Path(__file__).parent / "metadata_schema.json"

MINE = {"bundle_root": "bundle", "metadata_file": "mine.json"}

Configure = Callable[..., TaskConfig]

READER = """
if __name__ == "__main__":  # nnU-Net's worker processes import this file
    import json, sys, torch
    from monai.bundle import ConfigParser
    from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, SaveImage

    model, image, output = sys.argv[1:]
    extra = {"inference.json": "", "metadata.json": ""}
    network = torch.jit.load(model, _extra_files=extra)
    predictor = ConfigParser(json.loads(extra["inference.json"])).get_parsed_content("network_def")
    predictor.predictor.network = network
    predictor.predictor.use_mirroring = False
    data = Compose([LoadImaged("image"), EnsureChannelFirstd("image")])({"image": image})
    prediction = predictor(data["image"][None])
    SaveImage(output_dir=output, separate_folder=False, output_postfix="seg")(prediction[0])
"""


def labels_of(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj).astype(int)


def run(*command: str, cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.fixture(scope="module")
def expected(trained: TaskConfig, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """What ``segment`` makes of the case without mirroring, on its own voxel grid."""
    target = tmp_path_factory.mktemp("expected") / "case.nii.gz"
    image = trained.data_folder / "imagesTr" / "hippocampus_001.nii.gz"
    segment(model_file(trained), image, target, test_time_augmentation=False)
    labels = labels_of(target)
    assert set(np.unique(labels)) == {0, 1, 2}
    return labels


def test_bundle_has_the_files_of_the_specification(trained: TaskConfig) -> None:
    names = {
        path.relative_to(trained.bundle_folder).as_posix()
        for path in trained.bundle_folder.rglob("*")
        if path.is_file() and ".medseg" not in path.parts
    }
    key_metric = [name for name in names if "checkpoint_key_metric=" in name]
    assert len(key_metric) == 1
    assert names - set(key_metric) == {
        "LICENSE",
        "configs/inference.yaml",
        "configs/metadata.json",
        "docs/README.md",
        "models/dataset.json",
        "models/model.pt",
        "models/nnunet_checkpoint.pth",
        "models/plans.json",
        "models/fold_0/checkpoint_epoch=1.pt",
        "models/fold_0/model.pt",
        "models/fold_0/model.ts",
    }


def test_metadata_describes_task_and_validates(trained: TaskConfig) -> None:
    from monai.bundle import verify_metadata

    path = trained.bundle_folder / "configs" / "metadata.json"
    metadata = json.loads(path.read_text())
    jsonschema.validate(metadata, json.loads(SCHEMA.read_text()))
    verify_metadata(meta_file=str(path), filepath=str(SCHEMA))
    data = metadata["network_data_format"]
    assert data["inputs"]["image"]["channel_def"] == {"0": "MRI"}
    assert data["inputs"]["image"]["modality"] == "MR"
    assert data["inputs"]["image"]["spatial_shape"] == [24, 32, 40]
    assert data["outputs"]["pred"]["channel_def"] == {
        "0": "background",
        "1": "Anterior",
        "2": "Posterior",
    }
    assert metadata["eval_metrics"] == {"mean_dice": 0.8123, "dice_Anterior": 0.8}
    assert load_packaged(model_file(trained)).metadata == metadata
    assert "| mean_dice | 0.8123 |" in (trained.bundle_folder / "docs" / "README.md").read_text()


def test_validation_dice_names_regions(root: DataRoot, configure: Configure) -> None:
    labels = {"background": 0, "whole": [1, 2], "core": 2}
    config = configure(root.path, labels=labels, regions_class_order=[2, 1])
    means = {"(1, 2)": {"Dice": 0.8}, "2": {"Dice": 0.6}}
    summary = {"metric_per_case": [], "foreground_mean": {"Dice": 0.7}, "mean": means}
    write_json(config.fold_folder() / "validation" / "summary.json", summary)
    measures = validation_dice(config, config.label_set)
    assert measures == {"mean_dice": 0.7, "dice_whole": 0.8, "dice_core": 0.6}


def test_schema_refuses_what_the_specification_does_not_allow(trained: TaskConfig) -> None:
    schema = json.loads(SCHEMA.read_text())
    text = (trained.bundle_folder / "configs" / "metadata.json").read_text()
    for change in ({"version": 1}, {"network_data_format": {"inputs": {}}}, {"changelog": {}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**json.loads(text), **change}, schema)


@pytest.fixture
def copy(trained: TaskConfig, tmp_path: Path) -> Path:
    """A root of its own with everything but the images, to change."""
    root = tmp_path / "root"
    shutil.copytree(trained.root.path, root, ignore=shutil.ignore_patterns("*.nii.gz"))
    return root


def test_users_metadata_replaces_fields_and_keeps_the_rest(
    copy: Path, configure: Configure
) -> None:
    given = {
        "authors": "Radiology",
        "eval_metrics": {"mean_dice": 0.9},
        "network_data_format": {"outputs": {"pred": {"channel_def": {"0": "bg", "1": "Head"}}}},
    }
    (copy / "mine.json").write_text(json.dumps(given))
    (copy / "bundle" / "LICENSE").write_text("MIT")
    config = configure(copy, bundle_config={"bundle_root": "bundle", "metadata_file": "mine.json"})
    prepare_bundle(config)
    metadata = json.loads((copy / "bundle" / "configs" / "metadata.json").read_text())
    assert metadata["authors"] == "Radiology"
    assert metadata["eval_metrics"] == {"mean_dice": 0.9}
    pred = metadata["network_data_format"]["outputs"]["pred"]
    assert pred["channel_def"] == {"0": "bg", "1": "Head"}
    assert pred["format"] == "segmentation"
    assert metadata["task"].startswith("Segmentation of Anterior, Posterior")
    assert (copy / "bundle" / "LICENSE").read_text() == "MIT"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "mine.json does not exist"),
        ("{", "mine.json is not valid JSON"),
        ("[]", "must hold a JSON object"),
        ('{"network_data_format": {"outputs": 1}}', "must map label values to names"),
    ],
)
def test_unusable_metadata_file_is_named(
    copy: Path, configure: Configure, text: str | None, message: str
) -> None:
    if text is not None:
        (copy / "mine.json").write_text(text)
    config = configure(copy, bundle_config={"bundle_root": "bundle", "metadata_file": "mine.json"})
    before = contents(copy)
    with pytest.raises(UserError, match=message):
        prepare_bundle(config)
    assert contents(copy) == before


@pytest.mark.parametrize("foreign", ["{}", "[1]", '{"mean": {"Dice": 0.8}}'])
def test_a_foreign_summary_is_named(copy: Path, configure: Configure, foreign: str) -> None:
    config = configure(copy)
    (config.fold_folder() / "validation" / "summary.json").write_text(foreign)
    with pytest.raises(UserError, match=r"summary\.json is not a summary of nnU-Net"):
        prepare_bundle(config)


def test_each_stage_says_what_must_run_before_it(copy: Path, configure: Configure) -> None:
    config = configure(copy)
    shutil.rmtree(copy / "bundle" / "models")
    for stage, missing, message in (
        (convert_pt_to_ts, None, r"model\.pt does not exist: train fold 0 first"),
        (
            export_checkpoint,
            config.fold_folder() / "checkpoint_final.pth",
            "train fold 0 to its end first",
        ),
        (
            prepare_bundle,
            config.preprocessed_folder / "nnUNetPlans.json",
            r"nnUNetPlans\.json does not exist: run plan_and_prepr",
        ),
    ):
        if missing is not None:
            missing.unlink()
        before = contents(copy)
        with pytest.raises(UserError, match=message):
            stage(config)
        assert contents(copy) == before


def test_checkpoints_load_without_permissions(trained: TaskConfig) -> None:
    folder = trained.bundle_folder / "models"
    for path in (*folder.glob("fold_0/*.pt"), folder / "model.pt"):
        checkpoint = torch.load(path, weights_only=True)
        assert set(checkpoint) == {"network_weights", "optimizer_state", "scheduler"}
        assert checkpoint["scheduler"]["last_epoch"] == 1
        assert checkpoint["optimizer_state"]["param_groups"][0]["initial_lr"] == 0.01
    header = torch.load(folder / "nnunet_checkpoint.pth", weights_only=True)
    assert header["init_args"]["configuration"] == "tiny"
    assert header["trainer_name"] == "nnUNetTrainer"


def test_the_schedule_is_that_of_the_training(copy: Path, configure: Configure) -> None:
    """The trainer class may decide, and the config change after the training."""
    config = configure(copy, num_epochs=1000, initial_lr=0.5)
    record = config.fold_folder() / ".medseg" / "training.json"
    content = json.loads(record.read_text())
    assert content["settings"]["num_epochs"] == 1
    content["settings"]["num_epochs"] = 250
    record.write_text(json.dumps(content))
    folder = export_checkpoint(config)
    schedule = torch.load(folder / "model.pt", weights_only=True)["scheduler"]
    assert (schedule["max_steps"], schedule["initial_lr"]) == (250, 0.01)
    record.unlink()  # trained by nnU-Net's own command
    folder = export_checkpoint(config)
    schedule = torch.load(folder / "model.pt", weights_only=True)["scheduler"]
    assert schedule["max_steps"] == 1000


def test_the_bundles_model_is_that_of_the_configs_own_fold(
    copy: Path, configure: Configure
) -> None:
    config = configure(copy)
    link = copy / "bundle" / "models" / "model.pt"
    export_checkpoint(config)
    shutil.copytree(config.fold_folder(), config.results_folder / "fold_1")
    folder = export_checkpoint(load_config(config.path, config.root, fold=1))
    assert (folder / "model.pt").is_file()
    assert link.resolve() == copy / "bundle" / "models" / "fold_0" / "model.pt"
    export_checkpoint(configure(copy, fold=1))  # exported already: only the link is made anew
    assert link.resolve() == folder / "model.pt"


def test_second_export_repeats_nothing_and_drops_stale_files(
    copy: Path, configure: Configure
) -> None:
    config = configure(copy)
    folder = copy / "bundle" / "models" / "fold_0"
    written = (folder / "model.pt").stat().st_mtime_ns
    result = convert_pt_to_ts(config)
    export_checkpoint(config)
    assert (folder / "model.pt").stat().st_mtime_ns == written
    assert convert_pt_to_ts(config) == result
    (folder / "checkpoint_key_metric=0.9999.pt").write_bytes(b"stale")
    (folder / "model.pt").write_bytes(b"half")
    export_checkpoint(config)
    assert not (folder / "checkpoint_key_metric=0.9999.pt").exists()
    assert torch.load(folder / "model.pt", weights_only=True)["network_weights"]


@pytest.mark.parametrize("free", [0, 64 << 10])
def test_a_full_disk(
    trained: TaskConfig,
    volume: Volume,
    configure: Configure,
    free: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ignored = shutil.ignore_patterns("*.nii.gz", "mlflow.db", "mlartifacts", "bundle")
    shutil.copytree(trained.root.path, volume.folder, ignore=ignored, dirs_exist_ok=True)
    config = configure(volume.folder)
    for name, stage, result in (
        ("prepare_bundle", prepare_bundle, "configs/metadata.json"),
        ("train", export_checkpoint, "models/fold_0/model.pt"),
        ("convert_pt_to_ts", convert_pt_to_ts, "models/fold_0/model.ts"),
    ):
        # the bundle's descriptions are too small to leave anything
        with volume.full(name, capsys, free=0 if name == "prepare_bundle" else free):
            stage(config)
        assert not (config.bundle_folder / result).exists()
        stage(config)
        assert (config.bundle_folder / result).is_file()
    image = torch.zeros(1, 1, 24, 32, 40)
    found, expected = (load_packaged(model_file(each)).network(image) for each in (config, trained))
    assert torch.equal(found, expected)


def test_traced_network_is_the_original(trained: TaskConfig) -> None:
    packaged = load_packaged(model_file(trained))
    original = load_network(trained.bundle_folder / "models" / "fold_0" / "model.pt")
    patches = example_patches(trained.preprocessed_folder, packaged.plans, "tiny")
    assert compare(original, packaged.network, patches) < 1e-4
    assert packaged.network.state_dict().keys() == original.state_dict().keys()
    assert packaged.network(torch.zeros(3, 1, 24, 32, 40)).shape == (3, 3, 24, 32, 40)
    graph = str(packaged.network.inlined_graph)
    assert "aten::conv3d" in graph or "aten::_convolution" in graph
    assert '"cpu"' not in graph and '"cuda' not in graph  # no device is baked in


def test_another_network_is_refused(trained: TaskConfig) -> None:
    original = load_network(trained.bundle_folder / "models" / "fold_0" / "model.pt")
    plans = json.loads((trained.bundle_folder / "models" / "plans.json").read_text())
    patches = example_patches(trained.preprocessed_folder, plans, "tiny")

    class Other(torch.nn.Module):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return original(batch) * 1.01

    with pytest.raises(UserError, match="does not do what the original does"):
        compare(original, Other(), patches)


def test_monai_runs_the_bundle(
    trained: TaskConfig, image: Path, expected: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    shutil.copy(image, tmp_path / "images")
    command = (sys.executable, "-m", "monai.bundle", "run")
    options = ["--config_file", "configs/inference.yaml", "--test_time_augmentation", "False"]
    options += ["--dataset_dir", str(tmp_path / "images"), "--output_dir", str(tmp_path / "out")]
    run(*command, *options, cwd=trained.bundle_folder)
    found = labels_of(tmp_path / "out" / "hippocampus_001_seg.nii.gz")
    assert (found == expected).mean() > 0.999


def test_reader_needs_the_packaged_file_alone(
    trained: TaskConfig, image: Path, expected: np.ndarray, tmp_path: Path
) -> None:
    shutil.copy(model_file(trained), tmp_path / "model.ts")
    (tmp_path / "reader.py").write_text(READER)
    run(sys.executable, "reader.py", "model.ts", str(image), str(tmp_path), cwd=tmp_path)
    found = labels_of(tmp_path / "hippocampus_001_seg.nii.gz")
    assert (found == expected).mean() > 0.999


def test_a_training_may_start_from_any_file_of_the_model(copy: Path, configure: Configure) -> None:
    trained = configure(copy)
    checkpoint = trained.fold_folder() / "checkpoint_final.pth"
    expected = load_checkpoint(checkpoint)["network_weights"]
    lightning = copy / "bundle" / "models" / "fold_0" / "last.ckpt"
    state = {f"network._orig_mod.{name}": value for name, value in expected.items()}
    torch.save({"state_dict": state, "epoch": 1}, lightning)
    own = {name: torch.zeros_like(value) for name, value in expected.items()}
    for path in (model_file(trained), lightning.with_name("model.pt"), lightning, checkpoint):
        found = first_weights(configure(copy, pretrained_weights=str(path)), own)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected), path.name
