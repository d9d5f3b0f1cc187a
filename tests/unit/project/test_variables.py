import os
from pathlib import Path

import pytest

from medseg.project import environment, secret, variables
from medseg.project.variables import SECRETS, Variable

PROJECT = Path(__file__).parents[3]
CODE = [
    path
    for folder in ("medseg", "components", "pipelines", "images/map/app")
    for path in sorted((PROJECT / folder).rglob("*.py"))
    if path.name != "variables.py"
]


def test_a_secret_is_asked_for_by_kind_and_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDSEG_DICOMWEB_TOKEN", raising=False)
    assert secret("dicomweb", "token") == ""
    monkeypatch.setenv("MEDSEG_DICOMWEB_TOKEN", "open-barley")
    assert secret("dicomweb", "token") == "open-barley"
    with pytest.raises(KeyError):
        secret("dicomweb", "tokn")


def test_a_variable_that_is_empty_has_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSEG_DATA_ROOT", "")
    assert variables.DATA_ROOT.value == "/mnt/Data"
    monkeypatch.setenv("MEDSEG_DATA_ROOT", "/data")
    assert variables.DATA_ROOT.value == "/data"


def test_each_value_arrives_by_a_variable_of_its_own() -> None:
    names = [key.variable for kind in SECRETS.values() for key in kind.keys]
    names += [each.name for each in vars(variables).values() if isinstance(each, Variable)]
    assert len(set(names)) == len(names)
    assert all(row.kind == kind for kind, row in SECRETS.items())


def test_nothing_else_reads_a_secrets_variable() -> None:
    keys = [(kind.kind, key) for kind in SECRETS.values() for key in kind.keys]
    spelled = {
        f"{path.relative_to(PROJECT)}: ask secret({kind!r}, {key.name!r}) for {key.variable}"
        for path in CODE
        for kind, key in keys
        if key.variable in path.read_text(encoding="utf-8")
    }
    assert not spelled


def test_what_is_as_good_as_a_password_is_hidden_when_typed() -> None:
    shown = {key.name for kind in SECRETS.values() for key in kind.keys if not key.hidden}
    assert shown == {"username", "access_key", "endpoint"}


def test_an_environment_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSEG_A", "before")
    monkeypatch.delenv("MEDSEG_B", raising=False)
    monkeypatch.setenv("MEDSEG_C", "before")
    with pytest.raises(ValueError), environment(MEDSEG_A="x", MEDSEG_B="y", MEDSEG_C=None):
        assert (os.environ["MEDSEG_A"], os.environ["MEDSEG_B"]) == ("x", "y")
        assert "MEDSEG_C" not in os.environ
        raise ValueError
    assert (os.environ["MEDSEG_A"], os.environ["MEDSEG_C"]) == ("before", "before")
    assert "MEDSEG_B" not in os.environ
