"""``segment``: nnU-Net's result from one file, for every kind of input, and for bad ones."""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from medseg.bundle import model_file, segment
from medseg.bundle.inference import build_predictor, find_cases
from medseg.bundle.torchscript import BFLOAT16_DICE, load_packaged
from medseg.cli import main
from medseg.config import TaskConfig
from medseg.dicom import nifti_to_dicom, read_image
from medseg.imaging import write_nifti
from medseg.nnunet import devices, environment
from medseg.nnunet.prediction import CasePredictor
from medseg.project import CasesFailedError, UserError
from tests.volumes import Volume, contents, says_that_the_disk_is_full


def labels_of(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj).astype(int)


def test_same_result_as_nnunets_command(trained: TaskConfig, image: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(image, tmp_path / "in" / "case_0000.nii.gz")
    command = ["nnUNetv2_predict", "-d", trained.dataset_name, "-c", "tiny", "-f", "0"]
    command += ["-i", str(tmp_path / "in"), "-o", str(tmp_path / "theirs")]
    command += ["-device", "cpu", "-npp", "1", "-nps", "1"]
    with environment(trained):
        variables = {**os.environ, "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "0"}
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    written = segment(model_file(trained), tmp_path / "in", tmp_path / "ours")
    assert written == [tmp_path / "ours" / "case.nii.gz"]
    theirs, ours = labels_of(tmp_path / "theirs" / "case.nii.gz"), labels_of(written[0])
    assert nibabel.load(written[0]).get_data_dtype() == np.uint8
    np.testing.assert_allclose(
        nibabel.load(written[0]).affine, nibabel.load(image).affine, atol=1e-4
    )
    for value in (1, 2):
        ours_here, theirs_here = ours == value, theirs == value
        assert theirs_here.any()
        both = 2 * (ours_here & theirs_here).sum() / (ours_here.sum() + theirs_here.sum())
        assert both >= 0.9995


def predictor_of(trained: TaskConfig, **settings: Any) -> CasePredictor:
    packaged = load_packaged(model_file(trained))
    plans = packaged.plans
    plans["configurations"]["tiny"].update(settings.pop("plans", {}))
    dataset = {**packaged.dataset, **settings.pop("dataset", {})}
    return CasePredictor(
        [packaged.network],
        plans,
        dataset,
        configuration="tiny",
        mirror_axes=(),
        device="cpu",
    )


@pytest.mark.parametrize("spacing", [(1.3, 1.0, 0.8), (6.0, 1.0, 0.8), (0.9, 0.8, 7.0)])
@pytest.mark.parametrize("regions", [False, True])
def test_labels_are_those_of_nnunets_resampling(
    trained: TaskConfig, spacing: tuple[float, float, float], regions: bool
) -> None:
    from nnunetv2.inference.export_prediction import (
        convert_predicted_logits_to_segmentation_with_correct_shape as export,
    )

    dataset = {
        "labels": {"background": 0, "whole": [1, 2], "core": [2]},
        "regions_class_order": [1, 2],
    }
    predictor = predictor_of(trained, dataset=dataset if regions else {})
    generator = torch.Generator().manual_seed(1)
    image = torch.rand((1, 13, 40, 36), generator=generator).numpy()
    image[:, :2] = 0  # to be cropped
    data, properties = predictor.preprocess(image, spacing)
    heads = 2 if regions else 3
    logits = torch.randn((heads, *data.shape[1:]), generator=generator)
    theirs = export(
        logits.clone(),
        predictor._plans,
        predictor._configuration,
        predictor._labels,
        properties,
        num_threads_torch=1,
    )
    ours = predictor.labels(logits, properties)
    assert ours.shape == image.shape[1:]
    assert set(np.unique(ours)) == {0, 1, 2}
    assert (ours == theirs).mean() > 0.9999


def test_dicom_gives_the_same_voxels_as_nifti(trained: TaskConfig, tmp_path: Path) -> None:
    folder = trained.root.path / "one"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
        shutil.copy(trained.data_folder / part / "hippocampus_001.nii.gz", folder / part)
    shutil.copy(trained.data_folder / "dataset.json", folder)
    nifti_to_dicom(trained.root, "one", "dicom", config=None, modality="MR")
    volume = read_image(trained.root.path / "dicom")
    series = tmp_path / "series" / "patient"
    series.mkdir(parents=True)
    for number, header in enumerate(volume.instances):
        uid = header.SOPInstanceUID
        source = next(
            path
            for path in (trained.root.path / "dicom").rglob("*")
            if path.is_file() and uid.encode() in path.read_bytes()[:2000]
        )
        shutil.copy(source, series / f"{number}.dcm")
    write_nifti(volume.array, volume.affine, tmp_path / "same.nii.gz")

    options = {"test_time_augmentation": False}
    found = segment(
        model_file(trained), series.parent, tmp_path / "out", probabilities=True, **options
    )
    assert found == [tmp_path / "out" / "patient.dcm"]
    mask = segment(model_file(trained), tmp_path / "same.nii.gz", tmp_path / "m.nii.gz", **options)
    assert labels_of(mask[0]).any()
    again = segment(
        model_file(trained), series, tmp_path / "n.nii.gz", output_format="nifti", **options
    )
    assert (labels_of(again[0]) == labels_of(mask[0])).all()

    written = highdicom.seg.segread(found[0])
    assert [item.SegmentLabel for item in written.SegmentSequence] == ["Anterior", "Posterior"]
    sure = nibabel.load(found[0].with_name("patient_prob_1.nii.gz"))
    assert sure.shape == labels_of(mask[0]).shape
    np.testing.assert_allclose(sure.affine, nibabel.load(mask[0]).affine, atol=1e-3)
    assert np.asarray(sure.dataobj)[labels_of(mask[0]) == 1].min() > 0.3
    uids = [header.SOPInstanceUID for header in volume.instances]
    pixels = written.get_pixels_by_source_instance(
        uids, combine_segments=True, assert_missing_frames_are_empty=True
    )
    assert (pixels.transpose(2, 1, 0) == labels_of(mask[0])).all()


def test_one_bad_case_does_not_lose_the_others(
    trained: TaskConfig, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(image, tmp_path / "in" / "b.nii.gz")
    (tmp_path / "in" / "a.nii.gz").write_bytes(b"not an image")
    options = {"test_time_augmentation": False}
    for _ in range(2):
        with pytest.raises(CasesFailedError, match="1 of 2 cases failed") as caught:
            segment(model_file(trained), tmp_path / "in", tmp_path / "out", **options)
        assert "cannot be read as NIfTI" in caught.value.reasons["a"]
    assert [path.name for path in (tmp_path / "out").glob("*.nii.gz")] == ["b.nii.gz"]
    log = capsys.readouterr().out
    assert log.count("[2/2] b segmented in") == 1
    assert "b is segmented already" in log
    segment(
        model_file(trained), tmp_path / "in" / "b.nii.gz", tmp_path / "out" / "c.nii.gz", **options
    )


@pytest.mark.parametrize("output", ["out.nii.gz", "out.nii", "out"])
def test_a_full_disk(trained: TaskConfig, image: Path, volume: Volume, output: str) -> None:
    target = volume.folder / output
    result = target if target.suffix else target / image.name
    arguments = ["segment", image, "--model", model_file(trained), "-o", target, "--no-tta"]
    (volume.folder / "before").write_text("before")
    before = contents(volume.folder)
    volume.leave(0)
    done = CliRunner().invoke(main, [str(part) for part in arguments])
    assert done.exit_code == 1
    says_that_the_disk_is_full(done.output)
    assert contents(volume.folder) == before
    assert list(volume.folder.rglob(".partial-*")) == []
    volume.enlarge()
    done = CliRunner().invoke(main, [str(part) for part in arguments])
    assert done.exit_code == 0, done.output
    assert labels_of(result).shape == labels_of(image).shape


def test_probabilities_lie_beside_the_result(
    trained: TaskConfig, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_file(trained)
    (tmp_path / "in").mkdir()
    shutil.copy(image, tmp_path / "in" / "case.nii.gz")
    options: dict[str, Any] = {"test_time_augmentation": False, "probabilities": True}
    out = tmp_path / "out"
    names = [f"case_prob_{value}.nii.gz" for value in (0, 1, 2)]
    for _ in range(2):
        assert segment(model, tmp_path / "in", out, **options) == [out / "case.nii.gz"]
    assert "case is segmented already" in capsys.readouterr().out
    assert sorted(path.name for path in out.glob("*.nii.gz")) == ["case.nii.gz", *names]
    volumes = [nibabel.load(out / name) for name in names]
    assert all(volume.get_data_dtype() == np.uint16 for volume in volumes)
    np.testing.assert_allclose(volumes[1].affine, nibabel.load(image).affine, atol=1e-4)
    probabilities = np.stack([np.asarray(volume.dataobj) for volume in volumes])
    np.testing.assert_allclose(probabilities.sum(axis=0), 1, atol=1e-4)
    labels = labels_of(out / "case.nii.gz")
    assert (probabilities.argmax(axis=0) == labels).mean() > 0.9999

    (out / names[1]).unlink()  # then the case is not whole
    segment(model, tmp_path / "in", out, **options)
    assert (out / names[1]).is_file()
    del options["probabilities"]
    segment(model, tmp_path / "in", out, **options)  # none of earlier settings stay
    assert sorted(path.name for path in out.glob("*.nii.gz")) == ["case.nii.gz"]
    assert (labels_of(out / "case.nii.gz") == labels).all()


def test_probabilities_of_one_file(trained: TaskConfig, image: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "x.nii.gz"
    arguments = ["segment", image, "--model", model_file(trained), "-o", out, "--no-tta"]
    done = CliRunner().invoke(main, [*map(str, arguments), "--probabilities"])
    assert done.exit_code == 0, done.output
    written = {"x.nii.gz", *(f"x_prob_{value}.nii.gz" for value in (0, 1, 2))}
    assert {path.name for path in out.parent.iterdir()} == written

    (tmp_path / "in").mkdir()
    for name in ("y", "y_prob_1"):
        shutil.copy(image, tmp_path / "in" / f"{name}.nii.gz")
    with pytest.raises(UserError, match=r"y_prob_1\.nii\.gz would be the segmentation of one case"):
        segment(model_file(trained), tmp_path / "in", tmp_path / "two", probabilities=True)
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize("free", [0, 60_000])
def test_a_full_disk_leaves_no_half_of_the_probabilities(
    trained: TaskConfig, image: Path, volume: Volume, free: int
) -> None:
    arguments = ["segment", image, "--model", model_file(trained), "-o", volume.folder / "out"]
    (volume.folder / "before").write_text("before")
    (volume.folder / "out").mkdir()
    before = contents(volume.folder)
    volume.leave(free)
    done = CliRunner().invoke(main, [*map(str, arguments), "--no-tta", "--probabilities"])
    assert done.exit_code == 1
    says_that_the_disk_is_full(done.output)
    assert contents(volume.folder) == before
    volume.enlarge()
    done = CliRunner().invoke(main, [*map(str, arguments), "--no-tta", "--probabilities"])
    assert done.exit_code == 0, done.output
    assert len(list((volume.folder / "out").glob("*_prob_*.nii.gz"))) == 3


def test_precision_goes_by_what_the_model_records(
    trained: TaskConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    packaged = load_packaged(model_file(trained))
    assert packaged.bfloat16_dice is not None and 0.9 < packaged.bfloat16_dice <= 1
    monkeypatch.setattr(devices, "cpu_flags", lambda: {"amx_bf16"})

    def chosen(record: object, precision: str = "auto") -> torch.dtype:
        metadata = {**packaged.metadata, BFLOAT16_DICE: record}
        model = replace(packaged, metadata=metadata)
        return build_predictor(model, device="cpu", precision=precision)._precision

    assert chosen(0.9995) == torch.bfloat16
    assert chosen(0.99) == chosen(0.9995, "float32") == torch.float32
    assert chosen(0.99, "bfloat16") == torch.bfloat16
    assert "package it anew" not in capsys.readouterr().out
    assert chosen(None) == chosen("yes") == torch.float32
    assert "does not record whether bfloat16 gives its results" in capsys.readouterr().out


def test_channels_belong_to_one_case(image: Path, tmp_path: Path) -> None:
    for name in ("x_0000", "x_0001", "y"):
        shutil.copy(image, tmp_path / f"{name}.nii.gz")
    assert [(case.name, len(case.images)) for case in find_cases(tmp_path)] == [("x", 2), ("y", 1)]
    assert [case.name for case in find_cases(tmp_path / "x_0001.nii.gz")] == ["x"]
    (tmp_path / "x_0000.nii.gz").unlink()  # then four digits number cases
    assert [case.name for case in find_cases(tmp_path)] == ["x_0001", "y"]
    assert [case.name for case in find_cases(tmp_path / "x_0001.nii.gz")] == ["x_0001"]


def test_damaged_models_are_refused(trained: TaskConfig, image: Path, tmp_path: Path) -> None:
    content = model_file(trained).read_bytes()
    (tmp_path / "cut.ts").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.ts").write_bytes(b"")
    traced = torch.jit.trace(torch.nn.Conv3d(1, 2, 1), torch.zeros(1, 1, 4, 4, 4))
    torch.jit.save(traced, tmp_path / "bare.ts")
    torch.jit.save(traced, tmp_path / "half.ts", _extra_files={"metadata.json": "{}"})
    extra = {"metadata.json": "{}", "inference.json": '{"network_def": 1}'}
    torch.jit.save(traced, tmp_path / "foreign.ts", _extra_files=extra)
    with zipfile.ZipFile(tmp_path / "zip.ts", "w") as archive:
        archive.writestr("a", "b")
    for name, message in {
        "none.ts": "does not exist",
        "cut.ts": "truncated, damaged or not TorchScript",
        "empty.ts": "truncated, damaged or not TorchScript",
        "zip.ts": "truncated, damaged or not TorchScript",
        "bare.ts": "carries no metadata.json",
        "half.ts": "carries no inference.json",
        "foreign.ts": "inference.json without nnU-Net's plans",
    }.items():
        before = contents(tmp_path)
        with pytest.raises(UserError, match=message) as caught:
            segment(tmp_path / name, image, tmp_path / "out.nii.gz")
        assert name in str(caught.value)
        assert contents(tmp_path) == before


def test_bad_input_is_named(trained: TaskConfig, image: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "notes.txt").write_text("no image")
    (tmp_path / "two").mkdir()
    for name in ("p_0000", "p_0001"):
        shutil.copy(image, tmp_path / "two" / f"{name}.nii.gz")
    (tmp_path / "gap").mkdir()
    for name in ("q_0000", "q_0002"):
        shutil.copy(image, tmp_path / "gap" / f"{name}.nii.gz")
    many = trained.data_folder / "imagesTr"
    model = model_file(trained)
    out = tmp_path / "out.nii.gz"
    shutil.copy(image, out)
    before = contents(tmp_path)
    for given, output, options, message in [
        (tmp_path / "none", out, {}, "the input .*none does not exist"),
        (tmp_path / "empty", out, {}, "empty holds no NIfTI files .* and no DICOM"),
        (tmp_path / "text", out, {}, "text holds no NIfTI files .* and no DICOM"),
        (tmp_path / "text" / "notes.txt", out, {}, "neither a NIfTI file .* nor DICOM"),
        (tmp_path / "two", tmp_path / "o", {}, "p: the model needs 1 channel, but .* hold 2"),
        (tmp_path / "gap", tmp_path / "o", {}, "q: the model needs 1 channel, but q_0000"),
        (many, out, {}, "is one file, but the input holds 5 cases: name a folder"),
        (image, image, {}, "is the input image itself"),
        (image, image.parent, {}, "is the input image itself"),
        (image, tmp_path / "o.dcm", {}, "a DICOM SEG refers to a DICOM series"),
        (image, out, {"output_format": "dicom"}, "does not agree with output_format dicom"),
        (image, out, {"output_format": "png"}, "output_format: 'png' is unknown"),
        (image, out, {"precision": "int8"}, "precision: 'int8' is unknown"),
        (image, out, {"device": "tpu"}, "device: 'tpu' is unknown"),
    ]:
        with pytest.raises(UserError, match=message):
            segment(model, given, output, **options)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="cuda is asked for, but PyTorch finds no CUDA device"):
            segment(model, image, out, device="cuda")
    assert contents(tmp_path) == before
