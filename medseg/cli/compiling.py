"""What is generated from the pipelines and the table of Secrets: YAML for Kubeflow."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from kfp import compiler

from medseg import components, pipelines
from medseg.kubeflow.settings import load_settings
from medseg.kubeflow.stage import needs_of
from medseg.project import UserError, atomic_file, hint, write_text
from medseg.project.variables import DOCKER_CONFIG, SECRETS, SecretKind


def compile_pipelines(folder: Path) -> list[Path]:
    """Compiles every pipeline of ``medseg.pipelines`` with the site's settings.

    Args:
        folder: Where the YAML files go; those of the project's pipelines that are gone are removed.

    Returns:
        The files, one for each module of ``medseg.pipelines``.

    Raises:
        UserError: The settings are wrong, or name a stage that does not exist.
    """
    _check_stages()
    paths = []
    for name in pipelines.__all__:
        path = folder / f"{name}.yaml"
        with atomic_file(path) as temporary:
            compiler.Compiler().compile(getattr(pipelines, name), str(temporary))
        paths.append(path)
    for path in folder.glob("*.yaml"):
        # only what an earlier version of this project has compiled: the folder may hold more
        text = path.read_text(encoding="utf-8", errors="replace")
        if path not in paths and text.startswith("# PIPELINE DEFINITION\n# Name: medseg-"):
            path.unlink()
    return paths


def _check_stages() -> None:
    settings = load_settings()
    for name in settings.stages:
        if name not in components.__all__:
            raise UserError(
                f"the platform settings name no stage: {name!r}{hint(name, components.__all__)}."
            )
    for name in components.__all__:
        needs = needs_of(getattr(components, name).component_spec)
        settings.stage(name, needs.asks)
        settings.check_mounts(name, needs.secrets)


def write_secret_manifests(folder: Path) -> None:
    """Writes an empty Secret of every kind, and their names into the role that may write them.

    Args:
        folder: ``manifests``, which holds ``role.yaml``.
    """
    files = {f"{row.kind}.yaml": _manifest(row) for row in SECRETS.values()}
    for name, text in files.items():
        write_text(folder / "secrets" / name, text)
    kustomization = folder / "secrets" / "kustomization.yaml"
    head, _, _ = kustomization.read_text(encoding="utf-8").partition("resources:\n")
    write_text(kustomization, f"{head}resources:\n{_items(files, 2)}")
    for path in (folder / "secrets").glob("*.yaml"):
        if path.name not in files and path != kustomization:
            path.unlink()
    names = [name for row in SECRETS.values() for name in (row.default_name, *row.site_names)]
    role = (folder / "role.yaml").read_text(encoding="utf-8")
    role = re.sub(r"(?<=resourceNames:\n)( +- .*\n)*", _items(names, 6), role)
    write_text(folder / "role.yaml", role)


def _items(names: Iterable[str], indent: int) -> str:
    return "".join(f"{' ' * indent}- {name}\n" for name in names)


def _manifest(row: SecretKind) -> str:
    empty = "'{\"auths\": {}}'" if row.type == DOCKER_CONFIG else '""'
    return f"""\
# {row.purpose[0].upper()}{row.purpose[1:]}.
apiVersion: v1
kind: Secret
metadata:
  name: {row.default_name}
  labels:
    app.kubernetes.io/part-of: kfp-medseg
type: {row.type}
stringData:
""" + "".join(f"  {key.name}: {empty}\n" for key in row.keys)
