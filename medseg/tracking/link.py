"""Kubeflow's own link to MLflow: the run that it opens for each task, and ours for the fold.

From 2.17 on, KFP opens an MLflow run for each task where its ``plugins.mlflow`` is set, and names
it to the stage (``injectUserEnvVars``). When the stage has ended, KFP's launcher logs the stage's
parameters and its ``Metrics``, our final ones, to that run. So we log none there, which would be
twice: what we add is the way to the fold's run, which has the curves.
"""

from __future__ import annotations

from typing import Any

from medseg.config import TaskConfig
from medseg.project import progress
from medseg.project.variables import RUN_ID, TASK_RUN, TRACKING_URI
from medseg.tracking.store import masked, tracking_uri


def kubeflow_tags() -> dict[str, str]:
    """Tags by which the run of a fold is found from Kubeflow, as far as it is there.

    ``kfp.pipeline_run_id`` is KFP's run, by the name that KFP's own link uses;
    ``kfp.mlflow_run_id`` is the MLflow run of its task.
    """
    tags = {"kfp.pipeline_run_id": RUN_ID.value, "kfp.mlflow_run_id": _task_run()}
    return {name: value for name, value in tags.items() if value}


def run_page(config: TaskConfig, client: Any, run_id: str) -> str:
    """The page of a run in the UI of an MLflow server.

    Args:
        config: The task's config.
        client: Of the store that has the run.
        run_id: The run.
    """
    experiment = client.get_run(run_id).info.experiment_id
    server = masked(tracking_uri(config)).rstrip("/")
    return f"{server}/#/experiments/{experiment}/runs/{run_id}"


def link_task_run(config: TaskConfig, client: Any, run_id: str) -> None:
    """Gives the run that Kubeflow opened for this task, if it did, tags that lead to the fold's.

    Args:
        config: The task's config.
        client: Of the store that has the fold's run.
        run_id: The fold's run.
    """
    task_run = _task_run()
    if not task_run or task_run == run_id:
        return
    from mlflow import MlflowClient
    from mlflow.entities import RunTag

    same = tracking_uri(config) == TRACKING_URI.value
    try:
        own = client if same else MlflowClient(TRACKING_URI.value)
        tags = {"medseg.run_id": run_id, "medseg.run_url": run_page(config, client, run_id)}
        own.log_batch(task_run, tags=[RunTag(name, value) for name, value in tags.items()])
    except Exception as error:  # noqa: BLE001 - no store error may lose a training
        reason = masked(str(error)).strip().splitlines() or [type(error).__name__]
        progress(
            f"MLflow: Kubeflow's run {task_run} of this task got no link to {run_id} "
            f"({reason[0][:200]}); going on"
        )


def _task_run() -> str:
    # KFP names the run even where it keeps its server to itself; we could not reach it then
    return TASK_RUN.value if TRACKING_URI.value else ""
