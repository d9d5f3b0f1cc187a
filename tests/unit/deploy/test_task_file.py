"""The segmentation task file: MAIA's format, read unchanged, and its mistakes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from medseg.deploy import load_segmentation_task
from medseg.project import UserError

SPLEEN = """\
tasks:
  Spleen:
    Reference_Modality: image            # optional; needed with several modalities
    Modalities:
      image:
        File_Pattern: ".nii.gz"
        Rules_Text: |
          {"selections": [{"name": "CT Series",
                           "conditions": {"StudyDescription": "(.*?)", "Modality": "(?i)CT",
                                          "SeriesDescription": "(.*?)"}}]}
    Segments:
      - segment_label: "Spleen"
        segmented_property_category: {code: "91772007", scheme: "SCT", meaning: "Organ"}
        segmented_property_type: {code: 78961009, scheme: "SCT", meaning: "Spleen"}
        algorithm_name: "Segmentation-Spleen"
"""


def write(folder: Path, content: Any) -> Path:
    path = folder / "task.yaml"
    path.write_text(
        content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
    )
    return path


def test_maias_file_loads_unchanged(tmp_path: Path) -> None:
    task = load_segmentation_task(write(tmp_path, SPLEEN))
    assert task.name == "Spleen"
    assert task.reference == "image"
    assert task.modalities["image"].selections[0]["conditions"]["Modality"] == "(?i)CT"
    assert task.segments[0].segmented_property_type.code == "78961009"
    task.check_model({"background": 0, "spleen": 1}, ["CT"], "task.yaml")


def several() -> dict[str, Any]:
    content = yaml.safe_load(SPLEEN)
    task = content["tasks"]["Spleen"]
    task["Modalities"] = {
        "T1": {"File_Pattern": "_t1.nii.gz"},
        "T2": {"File_Pattern": "_t2.nii.gz"},
    }
    task["Reference_Modality"] = "T2"
    second = copy.deepcopy(task["Segments"][0])
    second["segment_label"] = "Lesion"
    task["Segments"].append(second)
    return content


def test_several_modalities_and_segments(tmp_path: Path) -> None:
    task = load_segmentation_task(write(tmp_path, several()), "Spleen")
    assert list(task.modalities) == ["T1", "T2"]
    assert task.reference == "T2"
    labels = {"background": 0, "Spleen": 1, "Lesion": 2}
    assert task.check_model(labels, ["a", "b"], "task.yaml") == ("T1", "T2")
    assert task.check_model(labels, ["t2", "t1"], "task.yaml") == ("T2", "T1")  # the model decides
    with pytest.raises(UserError, match="stands at place 2, but is the model's channel 1"):
        task.check_model(labels, ["T2", "T1w"], "task.yaml")


def broken(change: Any) -> dict[str, Any]:
    content = several()
    change(content["tasks"]["Spleen"])
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("tasks: [", "cannot be read"),
        ("Spleen: {}", "has no 'tasks:'"),
        (broken(lambda t: t.pop("Segments")), "'Segments' is missing"),
        (broken(lambda t: t.pop("Reference_Modality")), "Reference_Modality is missing"),
        (broken(lambda t: t.update(Reference_Modality="CT")), "CT is none of the modalities"),
        (
            broken(lambda t: t["Segments"][0].update(segment_label="x" * 65)),
            "at most 64 characters",
        ),
        (broken(lambda t: t["Segments"][0].update(algorithm_name="")), "algorithm_name"),
        (
            broken(lambda t: t["Segments"][1].update(segment_label="SPLEEN")),
            "the same segment_label",
        ),
        (broken(lambda t: t["Modalities"]["T1"].update(Rules_Text="{")), "Rules_Text': not of the"),
        (
            broken(lambda t: t["Modalities"]["T1"].update(Rules_Text='{"selections": [{}]}')),
            "every selection needs conditions",
        ),
        (broken(lambda t: t["Modalities"]["T1"].update(Pattern="x")), "Pattern"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, content: Any, message: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(UserError) as caught:
        load_segmentation_task(path, "Spleen")
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"SeriesDescription": "(T1"}, "SeriesDescription: '(T1' is no regular expression"),
        ({"SeriesDescription": 1}, "SeriesDescription: 1 must be a text"),
        ({"Modality": ["CT", "MR"]}, "must be a text"),
        ({"SeriesDescripton": "T1"}, "SeriesDescripton is no DICOM attribute"),
        ({"Modality": {"is": "CT"}}, "must be a text, a number or a list"),
        ({"SliceThickness": [1, "about"]}, "must be [least, most] or [number, relation]"),
        ({"ImageOrientationPatient": "oblique"}, "must be Axial, Coronal or Sagittal"),
    ],
)
def test_a_rule_that_the_selector_could_not_read(
    tmp_path: Path, conditions: dict[str, Any], message: str
) -> None:
    content = yaml.safe_load(SPLEEN)
    rules = json.dumps({"selections": [{"name": "x", "conditions": conditions}]})
    content["tasks"]["Spleen"]["Modalities"]["image"]["Rules_Text"] = rules
    with pytest.raises(UserError) as caught:
        load_segmentation_task(write(tmp_path, content))
    assert message in str(caught.value)
    assert "Modalities.image.Rules_Text" in str(caught.value)


def test_rules_of_every_kind(tmp_path: Path) -> None:
    conditions = {
        "ImageType": ["PRIMARY", "!DERIVED"],
        "SliceThickness": [0.5, 5],
        "SeriesNumber": [2, ">="],
        "EchoTime": "9\\d",
        "Laterality": None,
        "ImageOrientationPatient": "axial",
        "row_pixel_spacing": 1,
    }
    content = yaml.safe_load(SPLEEN)
    rules = json.dumps({"selections": [{"name": "x", "conditions": conditions}]})
    content["tasks"]["Spleen"]["Modalities"]["image"]["Rules_Text"] = rules
    task = load_segmentation_task(write(tmp_path, content))
    assert task.modalities["image"].selections[0]["conditions"] == conditions


def test_a_task_that_is_not_there(tmp_path: Path) -> None:
    path = write(tmp_path, SPLEEN)
    with pytest.raises(UserError, match="has no task 'Liver'; it holds Spleen"):
        load_segmentation_task(path, "Liver")
    content = yaml.safe_load(SPLEEN)
    content["tasks"]["Liver"] = content["tasks"]["Spleen"]
    with pytest.raises(UserError, match=r"several tasks \(Spleen, Liver\)"):
        load_segmentation_task(write(tmp_path, content))


@pytest.mark.parametrize(
    ("labels", "channels", "message"),
    [
        ({"background": 0, "Spleen": 1}, "ab", "Lesion: no label of the model"),
        ({"background": 0, "Spleen": 1, "Lesion": 2, "Liver": 3}, "ab", "Liver: without a segment"),
        ({"background": 0, "Spleen": 1, "Lesion": 2}, "a", "2 modalities (T1, T2)"),
    ],
)
def test_a_task_for_another_model(
    tmp_path: Path, labels: dict[str, int], channels: str, message: str
) -> None:
    task = load_segmentation_task(write(tmp_path, several()))
    with pytest.raises(UserError) as caught:
        task.check_model(labels, channels, "task.yaml")
    assert message in str(caught.value)
