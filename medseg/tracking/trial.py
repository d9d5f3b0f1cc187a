"""A run written only to see whether that works, with every error in words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from medseg.project import UserError, certificate_error, secret
from medseg.tracking.store import masked, open_client

_AWAY = re.compile(
    r"Max retries|refused|Name or service|resolve|timed? ?out|unreachable|Could not connect", re.I
)


class TryRun:
    """One run of an experiment, made once and written again by each try.

    The Secrets must be in the environment (:func:`medseg.project.variables.library_secrets`).

    Args:
        uri: The MLflow server.
        experiment: The experiment; made if needed.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        self._uri, self._name = uri, experiment
        self._client: Any = None
        self._run: Any = None

    def write(self) -> None:
        """Writes a value to the run.

        Raises:
            UserError: The server cannot be reached, is none, denies access, or refuses.
        """
        with self._errors():
            self._client = open_client(self._uri)
            found = self._client.get_experiment_by_name(self._name)
            if found is None:
                experiment = self._client.create_experiment(self._name)
            else:
                experiment = found.experiment_id
                if found.lifecycle_stage == "deleted":
                    self._client.restore_experiment(experiment)
            runs = self._client.search_runs([experiment], max_results=1)
            self._run = runs[0] if runs else self._client.create_run(experiment, run_name="check")
            self._client.log_metric(self._run.info.run_id, "check", 1.0)
            self._client.set_terminated(self._run.info.run_id)

    @property
    def storage(self) -> str:
        """Where files go, such as ``s3://bucket``; after :meth:`write`."""
        return "/".join(str(self._run.info.artifact_uri).split("/")[:3])

    def write_file(self, file: Path) -> None:
        """Writes a file to the run's storage and reads it back.

        Args:
            file: The file.

        Raises:
            UserError: The storage cannot be reached, denies access, has no such bucket, or gives
                back something else.
        """
        run = self._run.info.run_id
        try:
            self._client.log_artifact(run, str(file))
            back = self._client.download_artifacts(run, file.name, str(_below(file)))
            same = Path(back).read_bytes() == file.read_bytes()
        except Exception as error:  # noqa: BLE001 - MLflow and boto3 share no base
            raise self._storage_error(error) from None
        if not same:
            raise UserError(
                f"{self.storage} gave back another file than was written: look into its log."
            )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever MLflow raises
            raise self._server_error(error) from None

    def _server_error(self, error: Exception) -> UserError:
        if explained := certificate_error(error, self._uri):
            return explained
        host = urlsplit(self._uri).hostname or masked(self._uri)
        status = getattr(error, "get_http_status_code", lambda: 0)()
        text = masked(str(error))
        if status in (401, 403) or re.search(r"\b(401|403)\b", text):
            return UserError(
                f"the MLflow server {host} denies access: put a user that may write, or a token, "
                "into the Secret (medseg secrets mlflow)."
            )
        if _AWAY.search(text):
            return UserError(
                f"the MLflow server {host} cannot be reached: check tracking_uri, and that the "
                "cluster's network lets stages out to it."
            )
        if status == 404 or re.search(r"\b404\b|not valid JSON|Expecting value", text):
            return UserError(
                f"what answers at {host} is no MLflow server: tracking_uri is its address without "
                "what stands behind # in a browser."
            )
        return UserError(
            f"the MLflow server {host} refused ({_first(text)}): look into the server's log."
        )

    def _storage_error(self, error: Exception) -> UserError:
        if explained := certificate_error(error, secret("mlflow_artifacts", "endpoint")):
            return explained
        text = masked(str(error))
        where = self.storage
        if isinstance(error, ImportError):
            return UserError(
                f"this image cannot write to {where} ({error}): make it with boto3 in it."
            )
        keys = "the Secret with access to the storage (medseg secrets mlflow_artifacts)"
        if re.search("NoSuchBucket|InvalidBucketName", text):
            return UserError(
                f"there is no bucket {where}: make it, or name another where the MLflow server is "
                "started (--default-artifact-root)."
            )
        if re.search(r"InvalidAccessKeyId|SignatureDoesNotMatch|AccessDenied|Forbidden|403", text):
            return UserError(f"{where} denies access: put a key that may write there into {keys}.")
        if re.search(r"Unable to locate credentials|NoCredentials", text):
            return UserError(f"there is no key for {where}: give it in {keys}.")
        if _AWAY.search(text):
            return UserError(
                f"the storage of {where} cannot be reached: check the endpoint in {keys}."
            )
        return UserError(f"{where} refused a file ({_first(text)}): look into its log.")


def _below(file: Path) -> Path:
    folder = file.parent / "back"
    folder.mkdir(exist_ok=True)
    return folder


def _first(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[0][:200]
