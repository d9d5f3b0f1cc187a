"""Which MLflow store a task uses, and how to talk to it."""

from __future__ import annotations

import logging
import os
import re
from typing import Any

from medseg.config import TaskConfig
from medseg.project import UserError, lock, unshared_locks
from medseg.project.variables import RUN_ID, TRACKING_URI


def tracking_uri(config: TaskConfig) -> str:
    """The config's ``tracking_uri``, else ``MLFLOW_TRACKING_URI``, else the data root's store.

    User name and password (or token) belong in the Secret ``mlflow``.
    """
    return (
        config.bundle_config.tracking_uri
        or TRACKING_URI.value
        or f"sqlite:///{config.root.path / 'mlflow.db'}"
    )


def masked(text: str) -> str:
    """``text`` without the user name and password of any URL in it."""
    return re.sub(r"(\w[\w+.-]*://)[^/@\s'\"]*@", r"\1***@", text)


def check_store(config: TaskConfig) -> None:
    """Refuses the embedded store where pods on several nodes could write it without its locks.

    On a cluster any number of stages may run at once: folds, shards of a run, other tasks of the
    data root. SQLite is safe among them only where each sees the others' locks.

    Raises:
        UserError: The volume keeps each node's locks to itself.
    """
    uri = tracking_uri(config)
    kind = unshared_locks(config.root.path) if RUN_ID.value and _embedded(uri) else ""
    if kind:
        raise UserError(
            f"the embedded MLflow store {uri.removeprefix('sqlite:///')} is on a volume ({kind}) "
            "whose locks other nodes do not see, so that pods that write it at the same time would "
            "destroy it: name an MLflow server in bundle_config.tracking_uri, or have the volume "
            "mounted with locks."
        )


def _embedded(uri: str) -> bool:
    return uri.startswith("sqlite:")


def open_client(uri: str) -> Any:
    """A client that gives up soon, and is quiet.

    Args:
        uri: The store.
    """
    # MLflow reads these when it is imported or sends a request.
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["DO_NOT_TRACK"] = "true"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")  # its 120 s would hold up an epoch
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # else it reports every new table
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # the stage says it
    from mlflow import MlflowClient

    # What it logs with a traceback (a full disk), it raises too, and the tracker says it in a line.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    return MlflowClient(uri)


def connect(config: TaskConfig) -> tuple[Any, str]:
    """A client of the store, and the id of the config's experiment, which is made if needed.

    Raises:
        Exception: Whatever MLflow raises where the store cannot be reached.
    """
    uri = tracking_uri(config)
    if not _embedded(uri):
        client = open_client(uri)
        return client, _experiment(client, config, None)
    # two folds that make the tables at once would fail
    with lock(config.root, "mlflow", wait=True):
        client = open_client(uri)
        return client, _experiment(client, config, (config.root.path / "mlartifacts").as_uri())


def _experiment(client: Any, config: TaskConfig, artifacts: str | None) -> str:
    found = client.get_experiment_by_name(config.experiment_name)
    if found is None:
        return str(client.create_experiment(config.experiment_name, artifact_location=artifacts))
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)
