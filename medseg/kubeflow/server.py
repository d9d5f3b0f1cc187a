"""What a Kubeflow of a certain age leaves out of what our stages ask for."""

from __future__ import annotations

import re
from typing import Any

OLDEST = (2, 5)
RETRIES = (2, 14)  # kubeflow/pipelines#11861
SECURITY_CONTEXT = (2, 16)
LOST_PODS_ONLY = (2, 17)  # its Argo is installed with the retry policy OnError

_USER = "the image's own user 1000 holds"


def left_out(server: dict[str, Any]) -> str:
    """What an installation leaves out, in a line.

    Args:
        server: What it says of itself (``/apis/v2beta1/healthz``); its pages spell that otherwise.
    """
    version = version_of(server)
    if version is None:
        newer = " (2.14 or newer, as it names its pipeline store)" if _has_store(server) else ""
        retries = "" if newer else " before 2.14 it leaves out retries, and"
        return (
            f"the server hides its version{newer}:{retries} before 2.16 it leaves out the security "
            f"context of the stages ({_USER})."
        )
    name = f"Kubeflow Pipelines {_tag(server)}"
    if version < OLDEST:
        return f"{name} is older than 2.5, which runs need at least: have it updated."
    gaps = []
    if version < SECURITY_CONTEXT:
        gaps.append(f"the security context of the stages ({_USER})")
    if version < RETRIES:
        gaps.append("their retries")
    if gaps:
        return f"{name} leaves out {' and '.join(gaps)}."
    if version < LOST_PODS_ONLY:
        return f"{name} leaves out nothing of what the stages ask for."
    return (
        f"{name} leaves out nothing of what the stages ask for; it retries a pod that was lost, "
        "not a stage that failed."
    )


def version_of(server: dict[str, Any]) -> tuple[int, int] | None:
    """Major and minor number of an installation; None where it hides them.

    Args:
        server: As above.
    """
    match = re.match(r"v?(\d+)\.(\d+)", _tag(server))
    return (int(match[1]), int(match[2])) if match else None


def _tag(server: dict[str, Any]) -> str:
    return str(server.get("tag_name") or server.get("apiServerTagName") or "")


def _has_store(server: dict[str, Any]) -> bool:
    # there was none before 2.14
    return bool(server.get("pipeline_store") or server.get("pipelineStore"))
