"""MLflow's model registry: promoted models by name, version and alias."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.config import TaskConfig
from medseg.project import (
    DataRoot,
    UserError,
    atomic_file,
    certificate_error,
    file_hash,
    library_secrets,
    lock,
    progress,
    scratch_folder,
)
from medseg.project.variables import DATA_ROOT, TRACKING_URI
from medseg.tracking.runs import brief, open_run
from medseg.tracking.store import connect, masked, open_client, tracking_uri

CHAMPION = "champion"
"""The alias of the model to use; it moves from version to version."""

DIGEST = "medseg.sha256"
"""The tag of a version with the SHA-256 of its file."""

_ADDRESS = re.compile(r"models:/(?P<name>[^/@:]+)(?:@(?P<alias>[\w.-]+)|/(?P<version>\d+))")


@dataclass(frozen=True)
class Registration:
    """A version in the registry.

    Attributes:
        name: The registered model.
        version: Its version; empty where the registry could not be reached.
    """

    name: str
    version: str


def register(config: TaskConfig, model: Path, tags: Mapping[str, str]) -> Registration:
    """Registers a packaged model, and lets the alias ``champion`` point to it.

    The registered model has the name of the config's experiment. The file becomes an artifact of
    the fold's MLflow run and a version with these tags; a file that is registered already is not
    sent again. Versions that were champion before stay, and can be used by their number.

    A registry that cannot be reached fails nothing: a line says so, and the same call later makes
    good for it.

    Args:
        config: The task's config.
        model: The ``model.ts``.
        tags: What is to be known of it; no patient's data.

    Returns:
        The version.
    """
    name, digest = config.experiment_name, file_hash(model)
    uri = tracking_uri(config)
    with open_run(config) as tracker:
        if not tracker.run_id:
            return _away(name, "the tracker's line says why")
        try:
            with (
                library_secrets("mlflow", "mlflow_artifacts"),
                lock(config.root, "registry", wait=True),
            ):
                client, _ = connect(config)
                version = _version(client, name, digest)
                if version is None:
                    version = _add(client, name, tracker.run_id, model, digest)
                for key, value in tags.items():
                    client.set_model_version_tag(name, version, key, value)
                client.set_registered_model_alias(name, CHAMPION, version)
        except Exception as error:  # noqa: BLE001 - no store error may undo a promotion
            return _away(name, str(certificate_error(error, uri) or brief(error)))
    progress(f"MLflow: models:/{name}@{CHAMPION} is version {version}")
    return Registration(name, str(version))


def _away(name: str, reason: str) -> Registration:
    progress(
        f"MLflow's registry could not be reached ({reason.removesuffix('.')}): the model is "
        f"promoted, but not yet models:/{name}@{CHAMPION}; run promote again when it is back"
    )
    return Registration(name, "")


def _version(client: Any, name: str, digest: str) -> str | None:
    """The version that holds a file; the registered model is made if needed."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        client.create_registered_model(
            name, description="Packaged segmentation models (TorchScript), of kfp-medseg's promote."
        )
    found = client.search_model_versions(f"name = '{name}'")
    versions = [each.version for each in found if each.tags.get(DIGEST) == digest]
    return max(versions, key=int, default=None)


def _add(client: Any, name: str, run_id: str, model: Path, digest: str) -> str:
    folder = f"packaged/{digest[:12]}"
    client.log_artifact(run_id, str(model), folder)
    place = client.get_run(run_id).info.artifact_uri
    version = client.create_model_version(
        name, f"{place}/{folder}", run_id, tags={DIGEST: digest, "file": model.name}
    )
    return str(version.version)


def fetch_model(address: str, uri: str = "") -> Path:
    """The file of a registered model; it is fetched once, and kept by its hash.

    It is kept in ``.medseg/models`` of the data root, or, where the environment names none, in the
    user's cache.

    Args:
        address: ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.
        uri: The MLflow store; by default ``MLFLOW_TRACKING_URI``, else the data root's own.

    Raises:
        UserError: The address is none; the registry cannot be reached, or does not have it; what
            was fetched is not what was registered.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise UserError(
            f"model: {address!r} is no address of a registered model: write "
            f"models:/NAME@{CHAMPION} or models:/NAME/3, with the name of the task's experiment."
        )
    uri = uri or TRACKING_URI.value or _embedded()
    with library_secrets("mlflow", "mlflow_artifacts"):
        version = _find(uri, address, found)
        digest = str(version.tags.get(DIGEST, ""))
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise UserError(
                f"{address} (version {version.version}) was not registered by promote: it has no "
                f"tag {DIGEST}. Name another version, or the model's file."
            )
        target = _cache() / digest / "model.ts"
        if not target.is_file() or file_hash(target) != digest:
            _fetch(uri, version, target, digest)
    progress(f"{address}: version {version.version}, {target}")
    return target


def _find(uri: str, address: str, wanted: re.Match[str]) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        client = open_client(uri)
        if wanted["alias"]:
            return client.get_model_version_by_alias(wanted["name"], wanted["alias"])
        return client.get_model_version(wanted["name"], wanted["version"])
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise UserError(
                f"MLflow at {masked(uri)} has no model {address}: look which names, versions and "
                "aliases it has under Models, or promote a model first."
            ) from None
        raise _unreachable(uri, error) from None
    except OSError as error:
        raise _unreachable(uri, error) from None


def _unreachable(uri: str, error: Exception) -> UserError:
    reason = str(certificate_error(error, uri) or brief(error)).removesuffix(".")
    return UserError(
        f"MLflow's registry at {masked(uri)} cannot be reached ({reason}): try again when it is "
        "back, or name the model's file."
    )


def _fetch(uri: str, version: Any, target: Path, digest: str) -> None:
    import mlflow

    with scratch_folder(target) as folder:
        try:
            source = f"{version.source}/{version.tags.get('file', target.name)}"
            path = mlflow.artifacts.download_artifacts(
                artifact_uri=source, dst_path=str(folder), tracking_uri=uri
            )
        except Exception as error:  # noqa: BLE001 - whatever its way to the artifacts raises
            raise _unreachable(uri, error) from None
        if file_hash(Path(path)) != digest:
            raise UserError(
                f"what MLflow at {masked(uri)} holds as {version.name} version {version.version} "
                "is not what was registered: its SHA-256 differs. Promote the model again."
            )
        with atomic_file(target) as temporary:
            Path(path).replace(temporary)


def _cache() -> Path:
    if os.environ.get(DATA_ROOT.name):
        return DataRoot.from_environment().path / ".medseg" / "models"
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "kfp-medseg" / "models"


def _embedded() -> str:
    """The store in the data root, which the environment or the default names."""
    store = DataRoot.from_environment().path / "mlflow.db"
    if not store.is_file():
        raise UserError(
            f"no MLflow store is named: set {TRACKING_URI.name}, or {DATA_ROOT.name} to a data "
            "root that has one of its own."
        )
    return f"sqlite:///{store}"
