"""Names of images, and what a registry's refusals mean."""

from __future__ import annotations

import json
import stat
import subprocess
from pathlib import Path

import pytest

from medseg.deploy import registry
from medseg.deploy.registry import ImageName, credentials, explain, remote_digest
from medseg.project import UserError


@pytest.mark.parametrize(
    ("text", "registry", "path", "tag"),
    [
        ("registry.example.org/spleen:1.0", "registry.example.org", "spleen", "1.0"),
        ("localhost:5000/a/b-c__d:v_1", "localhost:5000", "a/b-c__d", "v_1"),
        ("maia/spleen:1.0-nifti", "docker.io", "maia/spleen", "1.0-nifti"),
    ],
)
def test_names(text: str, registry: str, path: str, tag: str) -> None:
    name = ImageName.parse(text, "destination")
    assert (name.registry, name.path, name.tag) == (registry, path, tag)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no image name"),
        ("registry.example.org/Spleen:1.0", "lower-case"),
        ("https://registry.example.org/spleen:1.0", "no image name"),
        ("registry.example.org/spleen:1.0 ; rm", "no image name"),
        ("registry.example.org/../spleen:1.0", "no image name"),
        ("spleen:1.0", "names no registry"),
        ("registry.example.org/spleen", "has no tag"),
        ("registry.example.org/spleen:" + "1" * 129, "no image name"),
    ],
)
def test_no_names(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        ImageName.parse(text, "destination_nifti")
    assert str(caught.value).startswith("destination_nifti: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("invalid status code from registry 403 (Forbidden)", "denies access"),
        ("unauthorized: authentication required", "denies access to spleen: check the credentials"),
        ("dial tcp 10.0.0.1:443: connect: connection refused", "cannot be reached"),
        ("dial tcp: lookup registry.example.org: no such host", "cannot be reached"),
        ("http: server gave HTTP response to HTTPS client", "insecure_registry"),
        ("reading manifest 1.0 in r/spleen: manifest unknown", "does not exist in its registry"),
        (
            'error getting credentials - err: exec: "docker-credential-x": executable file not '
            "found in $PATH",
            "install the helper",
        ),
        ("x\nsomething new", "skopeo failed on registry.example.org/spleen:1.0: something new"),
    ],
)
def test_refusals(text: str, message: str) -> None:
    name = ImageName.parse("registry.example.org/spleen:1.0", "destination")
    assert message in str(explain(text, name))


def test_credentials_lie_in_a_private_file_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.dumps({"auths": {"registry.example.org": {"auth": "dTpw"}}})
    monkeypatch.setenv("MEDSEG_REGISTRY_AUTH", content)
    with credentials() as (option, file):
        assert option == "--authfile"
        assert Path(file).read_text() == content
        assert stat.S_IMODE(Path(file).stat().st_mode) == 0o600
    assert not Path(file).exists()


def test_a_secret_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSEG_REGISTRY_AUTH", "hunter2")
    with pytest.raises(UserError, match="no Docker configuration") as caught, credentials():
        pass
    assert "hunter2" not in str(caught.value)


DOCKER_HUB = (
    "errors:\ndenied: requested access to the resource is denied\nunauthorized: authentication"
)


@pytest.mark.parametrize(
    ("text", "missing", "missing_where_denied"),
    [
        ("reading manifest 1.0 in r/spleen: manifest unknown", True, True),
        (DOCKER_HUB, False, True),
        ("unable to retrieve auth token: invalid username/password: denied", False, False),
        ("unauthorized: authentication required", False, False),
        ('exec: "docker-credential-x": executable file not found in $PATH', False, False),
    ],
)
def test_an_image_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, text: str, missing: bool, missing_where_denied: bool
) -> None:
    done = subprocess.CompletedProcess([], 1, b"", text.encode())
    monkeypatch.setattr(registry, "_run", lambda command: done)
    name = ImageName.parse("maia/spleen:1.0", "destination")
    for denied, expected in ((False, missing), (True, missing_where_denied)):
        if expected:
            assert remote_digest(name, [], insecure=False, denied_is_missing=denied) is None
        else:
            with pytest.raises(UserError):
                remote_digest(name, [], insecure=False, denied_is_missing=denied)
