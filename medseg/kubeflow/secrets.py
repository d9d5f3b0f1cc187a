"""The Secrets that stages read, written with the values of a prompt or a file."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import yaml
from kubernetes.client import ApiException, V1ObjectMeta, V1Secret

from medseg.kubeflow.namespace import core_api
from medseg.project import UserError
from medseg.project.variables import DOCKER_CONFIG, SECRETS

REGISTRY_KEYS = {"server": False, "username": False, "password": True}


def secret_keys(kind: str) -> dict[str, bool]:
    """The values that a person gives for a kind of Secret, and whether each is hidden when typed.

    Args:
        kind: One of :data:`medseg.project.variables.SECRETS`.
    """
    if SECRETS[kind].type == DOCKER_CONFIG:
        return REGISTRY_KEYS
    return {key.name: key.hidden for key in SECRETS[kind].keys}


def read_secret_file(kind: str, file: Path) -> dict[str, Any]:
    """Reads a Secret's values from a file.

    Args:
        kind: The kind of Secret.
        file: JSON or YAML with the kind's keys; for ``registry`` also a Docker
            ``config.json``.

    Raises:
        UserError: The file cannot be read. No message quotes its content.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))  # JSON is YAML
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        raise UserError(f"{file} cannot be read as JSON or YAML.") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} must hold 'key: value' lines: {', '.join(secret_keys(kind))}.")
    return content


def write_secret(
    kind: str, values: dict[str, Any], *, name: str, namespace: str = ""
) -> tuple[str, str]:
    """Creates a Secret, or replaces what it holds.

    Args:
        kind: The kind of Secret.
        values: Its values by key; a Docker configuration (``auths``) for ``registry``.
        name: The Secret's name.
        namespace: Its namespace; default: the one that the kube config names.

    Returns:
        ``created`` or ``updated``, and the namespace that it lies in.

    Raises:
        UserError: A key is unknown, a value is missing or no text, a Secret of another type has
            this name, or Kubernetes refused it. No message quotes a value.
    """
    if SECRETS[kind].type == DOCKER_CONFIG:
        data = {".dockerconfigjson": json.dumps(_docker_config(kind, values))}
    else:
        data = _checked(kind, values)
    secret = V1Secret(
        api_version="v1",
        kind="Secret",
        type=SECRETS[kind].type,
        metadata=V1ObjectMeta(name=name, labels={"app.kubernetes.io/part-of": "kfp-medseg"}),
        # not string_data: replacing data drops the keys that are no longer given
        data={key: base64.b64encode(value.encode()).decode() for key, value in data.items()},
    )
    with core_api() as (api, default, _):
        namespace = namespace or default
        try:
            present = api.read_namespaced_secret(name, namespace)
        except ApiException as error:
            if error.status != 404:
                raise
            api.create_namespaced_secret(namespace, secret)
            return "created", namespace
        if present.type != secret.type:
            raise UserError(
                f"the Secret {name} in {namespace} is of type {present.type}, which cannot become "
                f"{secret.type}: give another name with --name."
            )
        secret.metadata.resource_version = present.metadata.resource_version
        api.replace_namespaced_secret(name, namespace, secret)
        return "updated", namespace


def _checked(kind: str, values: dict[str, Any]) -> dict[str, str]:
    known = secret_keys(kind)
    for key, value in values.items():
        if key not in known:
            raise UserError(f"a {kind} Secret has no {key!r}, only {', '.join(known)}.")
        if not isinstance(value, str):
            raise UserError(f"{key} of the {kind} Secret must be text (in quotes).")
    given = {key: value.strip() for key, value in values.items() if value.strip()}
    if not given:
        raise UserError(f"the {kind} Secret would be empty: give {', '.join(known)}.")
    return given


def _docker_config(kind: str, values: dict[str, Any]) -> dict[str, Any]:
    if "auths" in values:
        auths = values["auths"]
        entries = auths.values() if isinstance(auths, dict) else []
        if not any(
            isinstance(entry, dict) and (entry.get("auth") or entry.get("password"))
            for entry in entries
        ):
            raise UserError(
                "the Docker configuration holds no password (a credential helper keeps it): "
                "give server, username and password."
            )
        return {"auths": auths}
    given = _checked(kind, values)
    missing = [key for key in REGISTRY_KEYS if key not in given]
    if missing:
        raise UserError(f"the {kind} Secret needs {', '.join(missing)}.")
    login = f"{given['username']}:{given['password']}"
    return {
        "auths": {
            given["server"]: {
                "username": given["username"],
                "password": given["password"],
                "auth": base64.b64encode(login.encode()).decode(),
            }
        }
    }
