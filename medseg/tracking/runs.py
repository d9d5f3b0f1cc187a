"""One MLflow run for each fold, whatever happens to the stage or to the tracking server."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.config import TaskConfig
from medseg.project import (
    UserError,
    certificate_error,
    library_secrets,
    progress,
    read_json,
    write_json,
)
from medseg.tracking.link import kubeflow_tags, link_task_run, run_page
from medseg.tracking.store import check_store, connect, masked, tracking_uri

RETRY_AFTER = 60.0  # s between two attempts to reach a store that was away

PARAMETER_LENGTH = 6000  # MLflow's limit


@dataclass(frozen=True)
class _Value:
    key: str
    value: float
    step: int | None
    timestamp: int  # ms since 1970


class Tracker:
    """Writes to the MLflow run of one fold; made by :func:`open_run`.

    No method raises because of the store: what could not be sent waits and is sent with the next
    call that reaches it, at the latest when the run is closed.

    Attributes:
        run_id: The run, or ``""`` as long as the store has not been reached.
    """

    def __init__(self, config: TaskConfig, tags: Mapping[str, str]) -> None:
        self.run_id = ""
        self._config = config
        self._tags = dict(tags)
        self._client: Any = None
        self._params: dict[str, str] = {}
        self._values: list[_Value] = []
        self._sent: dict[str, dict[int, float]] = {}  # what the run holds already
        self._artifacts: dict[tuple[str, str], Path] = {}
        self._next_attempt = 0.0
        self._warned = False

    def params(self, values: Mapping[str, Any]) -> None:
        """Logs parameters.

        MLflow's parameters are final; a value that differs from the run's becomes the tag
        ``changed.<name>``.

        Args:
            values: Names to values; nested mappings become dotted names.
        """
        self._params.update(_flat(values))
        self._flush()

    def metrics(
        self, values: Mapping[str, float], step: int | None = None, timestamp: float | None = None
    ) -> None:
        """Logs metrics, all of a step in one request.

        A step that the run already holds is not logged again, so that a resumed training may
        report its whole history. Values that are not finite (the Dice of an absent class) are
        left out.

        Args:
            values: Names to values.
            step: The epoch; None for a result that belongs to no step, which is logged again
                whenever it has changed.
            timestamp: Seconds since 1970; default: now.
        """
        when = int(1000 * (time.time() if timestamp is None else timestamp))
        self._values += [
            _Value(metric_name(name), float(value), step, when)
            for name, value in values.items()
            if math.isfinite(value)
        ]
        self._flush()

    def artifact(self, path: Path, folder: str = "") -> None:
        """Logs a file, or a folder with all it holds.

        Args:
            path: The file or folder.
            folder: Where it goes among the run's artifacts.
        """
        self._artifacts[(str(path), folder)] = path
        self._flush()

    # --- sending ---

    def _flush(self, *, now: bool = False) -> None:
        if not now and time.monotonic() < self._next_attempt:
            return
        try:
            with _secrets():
                self._open()
                self._send_params()
                self._send_values()
                self._send_artifacts()
        except Exception as error:  # noqa: BLE001 - no store error may lose a training
            self._next_attempt = time.monotonic() + RETRY_AFTER
            if not self._warned:
                self._warned = True
                uri = tracking_uri(self._config)
                reason = str(certificate_error(error, uri) or brief(error)).removesuffix(".")
                progress(
                    f"MLflow at {masked(uri)} cannot be reached ({reason}); going on, values are "
                    "sent when it is back"
                )

    def _open(self) -> None:
        if self.run_id:
            return
        client, experiment = connect(self._config)
        store = masked(tracking_uri(self._config))
        path = _runs_path(self._config)
        runs = _read(path)
        run_id = runs.get(store, "")
        if run_id:
            try:
                known = client.get_run(run_id)
            except Exception as error:  # removed from the store: make another
                if "RESOURCE_DOES_NOT_EXIST" not in str(getattr(error, "error_code", error)):
                    raise
                run_id = ""
            else:
                if known.info.lifecycle_stage == "deleted":
                    run_id = ""
        if run_id:
            client.update_run(run_id, status="RUNNING")
        else:
            task, fold = self._config.experiment_name, self._config.fold
            run = client.create_run(
                experiment,
                run_name=f"{self._config.bundle_config.mlflow_run_name or task} fold {fold}",
                tags={"medseg.fold": str(fold), "medseg.task": task},
            )
            run_id = run.info.run_id
            write_json(path, {**runs, store: run_id})
        for name, value in self._tags.items():
            client.set_tag(run_id, name, value)
        if store.startswith("http"):
            progress(f"MLflow: {run_page(self._config, client, run_id)}")
        link_task_run(self._config, client, run_id)
        self._client, self.run_id = client, run_id
        if self._warned:
            progress("MLflow is back")

    def _send_params(self) -> None:
        if not self._params:
            return
        from mlflow.entities import Param, RunTag

        known = self._client.get_run(self.run_id).data
        new = [Param(key, text) for key, text in self._params.items() if key not in known.params]
        changed = [
            RunTag(f"changed.{key}", text)
            for key, text in self._params.items()
            if known.params.get(key, text) != text
        ]
        for index in range(0, len(new), 100):  # MLflow's limit of one request
            self._client.log_batch(self.run_id, params=new[index : index + 100])
        if changed:
            self._client.log_batch(self.run_id, tags=changed[:100])
        self._params.clear()

    def _send_values(self) -> None:
        if not self._values:
            return
        from mlflow.entities import Metric

        batch = []
        for value in self._values:
            held = self._held(value.key)
            step = value.step or 0
            if step in held and (value.step is not None or held[step] == value.value):
                continue
            held[step] = value.value
            batch.append(Metric(value.key, value.value, value.timestamp, step))
        try:
            for index in range(0, len(batch), 1000):  # MLflow's limit of one request
                self._client.log_batch(self.run_id, metrics=batch[index : index + 1000])
        except Exception:
            self._sent.clear()  # ask the store again what it holds
            raise
        self._values.clear()

    def _held(self, key: str) -> dict[int, float]:
        if key not in self._sent:
            history = self._client.get_metric_history(self.run_id, key)
            ordered = sorted(history, key=lambda metric: metric.timestamp)
            self._sent[key] = {metric.step: metric.value for metric in ordered}
        return self._sent[key]

    def _send_artifacts(self) -> None:
        for key, path in list(self._artifacts.items()):
            send: Callable[..., None] = (
                self._client.log_artifacts if path.is_dir() else self._client.log_artifact
            )
            send(self.run_id, str(path), key[1] or None)
            del self._artifacts[key]

    def _close(self, status: str) -> None:
        self._flush(now=True)
        if self.run_id:
            try:
                with _secrets():
                    self._client.set_terminated(self.run_id, status)
            except Exception as error:  # noqa: BLE001 - as in _flush
                progress(f"MLflow: the run's end was not recorded ({type(error).__name__})")
        marker = _unsent(self._config)
        if not (self._values or self._params or self._artifacts):
            marker.unlink(missing_ok=True)
        else:
            with suppress(OSError):
                marker.parent.mkdir(parents=True, exist_ok=True)
                marker.touch()
            progress(
                f"MLflow is still away: {len(self._values)} values and {len(self._artifacts)} "
                "files were not sent; run the same stage again when it is back"
            )


def run_id(config: TaskConfig) -> str:
    """The MLflow run of the config's fold, in the store that was reached last; empty without one.

    Args:
        config: The task's config.
    """
    return next(reversed(_read(_runs_path(config)).values()), "")


def is_behind(config: TaskConfig) -> bool:
    """Whether a stage of this fold ended with values that the store has not taken."""
    return _unsent(config).exists()


def _unsent(config: TaskConfig) -> Path:
    return config.fold_folder() / ".medseg" / "mlflow-unsent"


@contextmanager
def open_run(config: TaskConfig, *, trains: bool = False) -> Iterator[Tracker]:
    """Opens the MLflow run of the config's fold, the same one each time, or makes it.

    The run's id lies in the fold's folder (``.medseg/mlflow.json``), one for each store; the run
    ends as FINISHED, KILLED (by a signal) or FAILED, and opens again with the next stage. Where
    Kubeflow has opened a run of its own for the stage, that gets a link to this one (see
    :mod:`medseg.tracking.link`).

    Args:
        config: The task's config; its ``experiment_name`` is the MLflow experiment.
        trains: Whether the stage trains the fold; the run is then tagged with Kubeflow's run.

    Yields:
        The tracker.

    Raises:
        UserError: The embedded store lies on a volume where several pods would destroy it.
    """
    check_store(config)
    tracker = Tracker(config, kubeflow_tags() if trains else {})
    status = "FINISHED"
    try:
        tracker._flush()
        yield tracker
    except (SystemExit, KeyboardInterrupt):
        status = "KILLED"
        raise
    except BaseException:
        status = "FAILED"
        raise
    finally:
        tracker._close(status)


def _secrets() -> AbstractContextManager[None]:
    """For the time of a request, so that no worker process inherits them."""
    return library_secrets("mlflow", "mlflow_artifacts")


def brief(error: Exception) -> str:
    """What it says first, and how that ends: there stands the reason, after paths and URLs."""
    lines = masked(str(error)).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= 300 else f"{lines[0][:100]} … {lines[0][-200:]}"


def _runs_path(config: TaskConfig) -> Path:
    """Where the fold's runs are noted: each store, masked, to the run's id."""
    return config.fold_folder() / ".medseg" / "mlflow.json"


def _read(path: Path) -> dict[str, str]:
    try:
        return dict(read_json(path, {}))
    except (OSError, UserError):
        return {}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{metric_name(name)}."))
        else:
            flat[f"{prefix}{metric_name(name)}"] = masked(str(value))[:PARAMETER_LENGTH]
    return flat


def metric_name(name: str) -> str:
    """``name`` with the characters that MLflow allows in names of metrics; ``_`` for others."""
    return re.sub(r"[^\w.\- /]", "_", str(name))
