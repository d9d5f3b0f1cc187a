from typing import Any

import pytest
import yaml

from medseg.config import load_config
from medseg.dicom import list_studies
from medseg.project import DataRoot, UserError
from tests.volumes import contents

MAIA = """\
data_dir: /mnt/Data/NIFTI/Task09_Spleen
nnunet_root_dir: /mnt/Data/nnUNet
dataset_name_or_id: "09"
dataset_format: "subfolders"            # or decathlon
modality_dict: {image: "_image.nii.gz", label: "_label.nii.gz"}
output_data_dir: /mnt/Data/NIFTI/Task09_Spleen
experiment_name: "Task09_Spleen"
concat_modalities_flag: false
labels: {background: 0, Spleen: 1}
label_dict: {Spleen: 1}
bundle_config:
  bundle_root: "/mnt/Data/MONet_Bundle/Task09/MONetBundle"
  tracking_uri: "https://mlflow.example.org"
  mlflow_run_name: "nnUNet"
continue_training: true                 # optional
run_validation_only: false              # optional
"""


def write(root: DataRoot, **changes: Any) -> str:
    content = yaml.safe_load(MAIA) | changes
    (root.path / "c.yaml").write_text(yaml.safe_dump({k: v for k, v in content.items() if v != ""}))
    return "c.yaml"


def test_maia_file_loads_unchanged(root: DataRoot) -> None:
    (root.path / "c.yaml").write_text(MAIA)
    config = load_config("/mnt/Data/c.yaml")
    assert config.dataset_id == 9
    assert config.dataset_name == "Dataset009_Task09_Spleen"
    assert config.data_folder == root.path / "NIFTI/Task09_Spleen"
    assert config.raw_folder == root.path / "nnUNet/nnUNet_raw_data_base/Dataset009_Task09_Spleen"
    assert config.fold_folder() == (
        root.path / "nnUNet/nnUNet_trained_models/Dataset009_Task09_Spleen"
        "/nnUNetTrainer__nnUNetPlans__3d_fullres/fold_0"
    )
    assert config.bundle_folder == root.path / "MONet_Bundle/Task09/MONetBundle"
    assert config.channels == {"image": "_image.nii.gz"}
    assert config.label_suffix == "_label.nii.gz"
    other = load_config("c.yaml", fold=3)
    assert (other.fold, other.default_fold) == (3, 0)
    assert other.fold_folder() == config.fold_folder().with_name("fold_3")


def test_a_decathlon_config_may_have_one_suffix_for_all(root: DataRoot) -> None:
    suffixes = {"image": ".nii.gz", "label": ".nii.gz"}
    config = load_config(write(root, dataset_format="decathlon", modality_dict=suffixes))
    assert config.channels == {"image": ".nii.gz"}
    with pytest.raises(UserError, match="two entries have the same suffix, so that the files of a"):
        list_studies(root, "file:///mnt/Data", config=config)


def test_optional_keys_of_maia(root: DataRoot) -> None:
    config = load_config(
        write(
            root,
            modality_list=["CT"],
            regions_class_order=[1, 2],
            labels={"background": 0, "whole": [1, 2], "core": 2},
            label_dict="",
            trainer_class_name="nnUNetTrainerNoMirroring",
            nnunet_plans_name="nnUNetResEncUNetMPlans",
            fold="all",
            train_extra_configs={"weight_decay": 1e-5},
        )
    )
    assert config.label_set.has_regions
    assert config.label_set.values == (0, 1, 2)
    assert (
        config.results_folder.name == "nnUNetTrainerNoMirroring__nnUNetResEncUNetMPlans__3d_fullres"
    )


def test_a_list_of_one_value_needs_no_order(root: DataRoot) -> None:
    config = load_config(write(root, labels={"background": 0, "Spleen": [1]}, label_dict=""))
    assert config.label_set.painted == {"background": 0, "Spleen": 1}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_epoch": 3}, r"unknown key 'num_epoch' \(did you mean 'num_epochs'\?\)"),
        (
            {"bundle_config": {"bundle_roots": "x", "bundle_root": "x"}},
            r"unknown key 'bundle_config.bundle_roots' \(did you mean 'bundle_root'\?\)",
        ),
        ({"data_dir": ""}, "'data_dir' is missing"),
        ({"num_epochs": "many"}, "'num_epochs': input should be a valid integer.*not 'many'"),
        (
            {"dataset_format": "bids"},
            "'dataset_format': input should be 'subfolders' or 'decathlon'",
        ),
        ({"dataset_name_or_id": "0"}, "'dataset_name_or_id': must be a number from 1 to 999"),
        ({"experiment_name": "a/b"}, "'experiment_name': may hold letters, digits"),
        ({"labels": {"Spleen": 1}}, "labels: must hold 'background: 0'"),
        ({"labels": {"background": 0}}, "labels: must name at least one structure"),
        (
            {"labels": {"background": 0, "a": 2}, "label_dict": ""},
            "labels: values must be consecutive",
        ),
        ({"label_dict": {"Liver": 1}}, "label_dict: Liver: 1 does not agree with labels"),
        ({"modality_dict": {"image": "_i.nii.gz"}}, "modality_dict: must hold 'label'"),
        (
            {"modality_dict": {"image": ".nii.gz", "label": ".nii.gz"}},
            "modality_dict: two entries have the same suffix",
        ),
        ({"modality_list": ["CT", "PT"]}, "modality_list: must name 1 channels"),
        ({"fold": -1}, "'fold': must be the number of a fold"),
        ({"fold": True}, "'fold': must be the number of a fold"),
        ({"configuration": "../3d"}, "'configuration': may hold letters, digits"),
        ({"nnunet_plans_name": "../../x"}, "'nnunet_plans_name': may hold letters, digits"),
        (
            {"modality_dict": {"image": "/../../x.nii.gz", "label": "_l.nii.gz"}},
            "'modality_dict': image: '/../../x.nii.gz' is no file suffix",
        ),
        ({"test_cases": ["../a"]}, "'test_cases': '../a' is no case"),
        (
            {"labels": {"background": 0, "a": True}, "label_dict": ""},
            "'labels': a: values must be whole numbers",
        ),
        (
            {
                "labels": {"background": 0, "a": [1, 2], "b": [2]},
                "label_dict": "",
                "regions_class_order": [1],
            },
            "regions_class_order: must hold 2 values",
        ),
        (
            {"labels": {"background": 0, "a": []}, "label_dict": ""},
            "'labels': a: has no value",
        ),
        (
            {"labels": {"background": 0, "ignore": 1, "a": 2}, "label_dict": ""},
            "labels: ignore must be the value after the highest",
        ),
        (
            {"labels": {"background": 0, "a": 1, "ignore": [2]}, "label_dict": ""},
            "labels: ignore must be the value after the highest",
        ),
        ({"data_dir": "/somewhere/else"}, "data_dir: /somewhere/else lies outside the data root"),
        ({"data_dir": "../x"}, "data_dir: ../x lies outside the data root"),
        (
            {"bundle_config": {"bundle_root": "/x"}},
            "bundle_config.bundle_root: /x lies outside the data root",
        ),
    ],
)
def test_each_mistake_is_named(root: DataRoot, changes: dict[str, Any], sentence: str) -> None:
    before = write(root, **changes)
    text = (root.path / before).read_text()
    with pytest.raises(UserError, match=sentence):
        load_config(before)
    assert (root.path / before).read_text() == text
    assert [p.name for p in root.path.iterdir()] == ["c.yaml"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, r"the config .*c\.yaml does not exist: check config_file_path"),
        ("", r"the config .*c\.yaml is empty"),
        ("# nothing\n", r"the config .*c\.yaml is empty"),
        ("a: [1\nb: 2\n", r"the config .*c\.yaml is not valid YAML \(line \d+, column \d+\)"),
        ("- a\n- b\n", r"the config .*c\.yaml holds a list, not a mapping"),
        ("!!python/object/apply:os.system ['touch x']", r"is not valid YAML"),
    ],
)
def test_unusable_files(
    root: DataRoot, content: str | None, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content is not None:
        (root.path / "c.yaml").write_text(content)
    before = contents(root.path)
    monkeypatch.chdir(root.path)  # where the last one would leave its mark
    with pytest.raises(UserError, match=sentence):
        load_config("c.yaml")
    assert contents(root.path) == before


def test_all_findings_in_one_message(root: DataRoot) -> None:
    with pytest.raises(UserError) as caught:
        load_config(write(root, num_epoch=1, save_every=0, experiment_name=""))
    message = str(caught.value)
    assert "'num_epoch'" in message
    assert "'save_every'" in message
    assert "'experiment_name' is missing" in message
