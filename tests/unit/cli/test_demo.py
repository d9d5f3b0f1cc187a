"""What ``medseg demo`` prints at its end."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from medseg.cli.demo import show_metrics
from medseg.config import load_config
from medseg.evaluation.summary import evaluate_pairs
from medseg.imaging import write_nifti
from medseg.project import DataRoot, write_json


def test_metrics_name_regions(root: DataRoot, capsys: pytest.CaptureFixture[str]) -> None:
    content = {
        "data_dir": "NIFTI",
        "dataset_name_or_id": 1,
        "experiment_name": "Task",
        "labels": {"background": 0, "whole": [1, 2], "core": 2},
        "regions_class_order": [1, 2],
        "bundle_config": {"bundle_root": "bundle"},
    }
    (root.path / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    config = load_config("config.yaml", root)
    label = np.arange(27, dtype=np.uint8).reshape(3, 3, 3) % 3
    path = write_nifti(label, np.eye(4), root.path / "label.nii.gz")
    summary = evaluate_pairs({"case": (path, path)}, config.label_set)
    write_json(config.fold_folder() / "validation" / "summary.json", summary)
    show_metrics(config)
    rows = [line for line in capsys.readouterr().out.splitlines() if "validation" in line]
    assert ["whole" in rows[0], "core" in rows[1]] == [True, True]
