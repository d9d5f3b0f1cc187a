"""The bundle's layout, which other tools know too."""

from __future__ import annotations

from medseg.bundle import model_file, present_model
from medseg.bundle.paths import checkpoint_file, descriptions, metadata_file, promotions_file
from medseg.config import load_config
from medseg.project import DataRoot
from tests.hippocampus import write_config


def test_every_part_has_its_place(root: DataRoot) -> None:
    write_config(root.path)
    config = load_config("config.yaml", root, fold=3)
    models = config.bundle_folder / "models"
    assert metadata_file(config) == config.bundle_folder / "configs" / "metadata.json"
    assert [path.relative_to(models).as_posix() for path in descriptions(config)] == [
        "plans.json",
        "dataset.json",
        "nnunet_checkpoint.pth",
    ]
    assert checkpoint_file(config) == models / "fold_3" / "model.pt"
    assert model_file(config) == models / "fold_3" / "model.ts"
    assert present_model(config) == models / "model.ts"
    assert promotions_file(config) == models / "promotions.json"
