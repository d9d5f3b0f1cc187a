"""Telling a team that a run failed: one message to a webhook."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from medseg.project import DataRoot, UserError, certificate_error, secret, stage
from medseg.project.events import Event, read_run, run_folder


def report_run(pipeline: str, run: str, last_stage: str, times: int = 1) -> None:
    """The stage ``notify``: :func:`report_failure` where there is a webhook, else nothing at all.

    Args:
        pipeline: The pipeline's name.
        run: The run's name.
        last_stage: The stage that ends a run that succeeds.
        times: How often it ends in such a run.
    """
    with suppress(UserError):  # a Secret that cannot be read is the stage's own failure
        if not secret("notify", "url"):
            return
    with stage("notify", target=run) as root:
        report_failure(root, pipeline, run, last_stage, times)


def report_failure(
    root: DataRoot, pipeline: str, run: str, last_stage: str, times: int = 1
) -> dict[str, Any]:
    """Sends one message if the run failed; a run that succeeded sends none.

    What happened is read from the events that the stages left in the run's folder, not from KFP's
    final status: neither ``kfp.local`` nor every driver hands that to an exit task.

    Args:
        root: The data root.
        pipeline: The pipeline's name.
        run: The run's name.
        last_stage: The stage that ends a run that succeeds. Where it has not ended and no stage
            has failed, one never started (no image, no node with room) or was killed.
        times: How often it ends in such a run, such as once a fold; at least once.

    Returns:
        The message, as JSON that chat services read (``text``) with its parts beside it; empty
        where the run succeeded.

    Raises:
        UserError: The webhook's address is no http(s) URL, or it did not take the message.
    """
    errors, complete = _outcome(run_folder(root), last_stage, max(times, 1))
    if complete and not errors:
        return {}
    if not errors:
        often = f" {times} times" if times > 1 else ""
        errors = [f"{last_stage} did not end{often}: a stage could not start, or was killed"]
    message = {
        "text": f"medseg: the run {run} of {pipeline} failed. " + " ".join(errors),
        "pipeline": pipeline,
        "run": run,
        "status": "FAILED",
        "errors": errors,
    }
    post_message(secret("notify", "url"), message)
    return message


def _outcome(folder: Path | None, last_stage: str, times: int) -> tuple[list[str], bool]:
    """The errors of stages that did not succeed in the end, and whether the last one has."""
    last: dict[tuple[str, str], Event] = {}
    for event in read_run(folder) if folder else ():
        if event.kind in ("start", "end", "error"):
            last[event.stage, event.target] = event  # of several tries the last one counts
    last = {key: event for key, event in last.items() if key[0] != "notify"}
    errors = [
        f"{stage}: {_public(event)}" for (stage, _), event in last.items() if event.kind != "end"
    ]
    ended = [event.kind == "end" for (stage, _), event in last.items() if stage == last_stage]
    return errors, sum(ended) >= times and all(ended)


def _public(event: Event) -> str:
    """What may leave the house: no list of cases, nothing that an unforeseen error may quote."""
    if event.kind == "start":
        return "ended without a message (killed, or out of memory)."
    if event.error == "UserError":
        return event.message
    if event.error == "CasesFailedError":
        count = re.search(r"\d+ of \d+ cases failed \(\d+ allowed\)", event.message)
        return f"{count[0]}." if count else "its only case failed; its log says more."
    return f"{event.error}; its log says more."


def post_message(url: str, message: dict[str, Any]) -> None:
    """Sends a message to a webhook.

    Args:
        url: Its address.
        message: As JSON that chat services read (``text``).

    Raises:
        UserError: The address is no http(s) URL, or the message was not taken.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(
            "the webhook's address (key url of the notify Secret) is no http(s) URL: "
            "write it anew with 'medseg secrets notify'."
        )
    request = urllib.request.Request(  # noqa: S310 - the scheme is checked above
        url,
        data=json.dumps(message).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=10):  # noqa: S310
            pass
    except (urllib.error.URLError, OSError) as error:
        if explained := certificate_error(error, url):
            raise explained from None
        reason = getattr(error, "reason", error)
        raise UserError(
            f"the webhook at {parts.hostname} did not take the message ({reason}): check its "
            "address (medseg secrets notify), and that stages are let out to it."
        ) from None
