import os
from pathlib import Path

import pytest

from medseg.project import UserError, environment, library_secrets, secret, variables
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


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Secrets are mounted; no other value of them is in the environment."""
    monkeypatch.setenv("MEDSEG_SECRETS_FOLDER", str(tmp_path))
    for kind in SECRETS.values():
        (tmp_path / kind.kind).mkdir()
        for variable in kind.variables.values():
            monkeypatch.delenv(variable, raising=False)
    return tmp_path


def test_a_file_goes_over_a_variable(mounted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSEG_DICOMWEB_TOKEN", "by variable\r\n")
    assert secret("dicomweb", "token") == "by variable"
    (mounted / "dicomweb" / "token").write_text("\n")  # an empty Secret, as the manifests make it
    assert secret("dicomweb", "token") == "by variable"
    (mounted / "dicomweb" / "token").write_text(" by fïle \n\n")
    assert secret("dicomweb", "token") == " by fïle "
    auths = '{\n\t"auths": {}\n}\n'
    (mounted / "registry" / ".dockerconfigjson").write_text(auths)
    assert secret("registry", ".dockerconfigjson") == auths.rstrip()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"s3cr\xe9t", "is no text"),
        (b"s3cret\nuser: me", "holds a line break or another control character"),
        (b"s3cret\0", "holds a line break or another control character"),
        (None, r"cannot be read \(Is a directory\)"),
    ],
)
def test_a_file_that_holds_no_value(mounted: Path, content: bytes | None, message: str) -> None:
    path = mounted / "mlflow" / "password"
    path.mkdir() if content is None else path.write_bytes(content)
    advice = "give it anew with 'medseg secrets mlflow'"
    with pytest.raises(
        UserError, match=f"the mlflow Secret: .*password {message}.*{advice}"
    ) as error:
        secret("mlflow", "password")
    assert "s3cr" not in str(error.value)


def test_a_library_has_its_variables_no_longer_than_it_needs_them(mounted: Path) -> None:
    (mounted / "mlflow" / "token").write_text("open-barley\n")
    (mounted / "mlflow_artifacts" / "access_key").write_text("key")
    before = dict(os.environ)
    with library_secrets("mlflow", "mlflow_artifacts"):
        given = {"MLFLOW_TRACKING_TOKEN": "open-barley", "AWS_ACCESS_KEY_ID": "key"}
        assert os.environ == before | given
    assert os.environ == before


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
