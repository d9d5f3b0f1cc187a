"""Two stages that work on one fold, however it is said, do not run at once."""

from __future__ import annotations

import pytest

from medseg.components import convert_pt_to_ts, finetune, test_model, train, validate
from medseg.config import fold_stage
from medseg.project import DataRoot
from tests.unit.config.test_task import write


@pytest.mark.parametrize("component", [train, finetune, validate, test_model, convert_pt_to_ts])
def test_the_folds_number_and_the_default_are_one_fold(
    root: DataRoot, component: object, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(root)
    name = component.name.replace("-", "_")
    with fold_stage(name, path, 0) as config:
        assert config.fold == 0
        with pytest.raises(SystemExit):
            component.python_func(path, None, fold=-1)
        assert "fold_0 is already running on the data root" in capsys.readouterr().err
        with fold_stage(name, path, 1) as other:
            assert other.fold == 1
