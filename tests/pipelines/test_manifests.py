"""The manifests: complete, valid, and in step with what the pipelines ask for."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from medseg.cli.compiling import write_secret_manifests
from medseg.kubeflow.settings import PlatformSettings
from medseg.project.variables import SECRETS
from tests.conftest import PROJECT
from tests.services.models import check_model

FOLDERS = [PROJECT / "manifests", PROJECT / "manifests" / "secrets"]
FILES = [p for f in FOLDERS for p in sorted(f.glob("*.yaml")) if p.name != "kustomization.yaml"]
MODELS = {
    "PersistentVolumeClaim": "V1PersistentVolumeClaim",
    "ServiceAccount": "V1ServiceAccount",
    "Role": "V1Role",
    "RoleBinding": "V1RoleBinding",
    "NetworkPolicy": "V1NetworkPolicy",
    "Secret": "V1Secret",
}


def _load(path: Path) -> dict[str, Any]:
    (content,) = yaml.safe_load_all(path.read_text())
    return dict(content)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_kustomization_lists_every_file(folder: Path) -> None:
    listed = _load(folder / "kustomization.yaml")["resources"]
    files = [p.name for p in folder.glob("*.yaml") if p.name != "kustomization.yaml"]
    assert sorted(listed) == sorted(files)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_an_object_follows_kubernetes_model(file: Path) -> None:
    content = _load(file)
    check_model(MODELS[content["kind"]], content, file.name, client)
    assert content["metadata"]["name"]
    assert "namespace" not in content["metadata"], "the namespace is the user's"
    # here, not in the kustomization: Debian's kubectl does not know its field labels
    assert content["metadata"]["labels"] == {"app.kubernetes.io/part-of": "kfp-medseg"}
    assert file.read_text().startswith("#") or content["kind"] == "RoleBinding"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_kustomize_builds(folder: Path) -> None:
    if not shutil.which("kubectl") and not os.environ.get("CI"):
        pytest.skip("kubectl is not here (apt-get install kubernetes-client)")
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    built = list(yaml.safe_load_all(done.stdout))
    assert len(built) == len(_load(folder / "kustomization.yaml")["resources"])
    assert all(
        o["metadata"]["labels"] == {"app.kubernetes.io/part-of": "kfp-medseg"} for o in built
    )


def test_what_is_generated_is_fresh(tmp_path: Path) -> None:
    shutil.copytree(PROJECT / "manifests", tmp_path / "manifests")
    for path in (tmp_path / "manifests" / "secrets").glob("[!k]*.yaml"):
        path.unlink()
    write_secret_manifests(tmp_path / "manifests")
    committed = {p.relative_to(PROJECT): p.read_text() for f in FOLDERS for p in f.glob("*.yaml")}
    again = {p.relative_to(tmp_path): p.read_text() for p in tmp_path.rglob("*.yaml")}
    assert again == committed, "manifests/ is stale: run ./build.sh compile"


def test_the_claim_is_the_one_that_pipelines_mount() -> None:
    claim = _load(PROJECT / "manifests" / "claim.yaml")
    assert claim["metadata"]["name"] == PlatformSettings().pvc_name


def test_secrets_are_those_that_stages_read_and_hold_no_value() -> None:
    secrets = {p.stem: _load(p) for p in FILES if p.parent.name == "secrets"}
    assert set(secrets) == set(SECRETS)
    for kind, secret in secrets.items():
        assert secret["metadata"]["name"] == getattr(PlatformSettings(), f"{kind}_secret")
        assert list(secret["stringData"]) == list(SECRETS[kind].variables)
        assert set(secret["stringData"].values()) <= {"", '{"auths": {}}'}


def test_the_role_covers_the_projects_own_secrets() -> None:
    rules = _load(PROJECT / "manifests" / "role.yaml")["rules"]
    (named,) = [set(rule["resourceNames"]) for rule in rules if "resourceNames" in rule]
    settings = PlatformSettings()
    defaults = {getattr(settings, f"{kind}_secret") for kind in SECRETS}
    assert named == {*defaults, "maiacloud-dockerhub"}
    assert not [rule for rule in rules if "*" in rule["verbs"] + rule["resources"]]
