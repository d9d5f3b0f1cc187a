"""The one table of what reaches a process from outside: environment variables and Secrets.

Nothing else reads a Secret: stages ask :func:`secret`, so that how a value arrives can change here
alone. On a cluster each kind is mounted as a folder with a file for each key; elsewhere a value is
in the person's own environment. What other libraries want as variables is set by
:func:`library_secrets`, no longer than they need it, so that neither the pod's description nor a
child process holds a password.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from medseg.project.errors import UserError


@dataclass(frozen=True)
class Variable:
    """An environment variable that the project reads.

    Attributes:
        name: What it is called.
        purpose: What it is for.
        default: What it means where it is not set, or empty.
    """

    name: str
    purpose: str
    default: str = ""

    @property
    def value(self) -> str:
        """Its value in this process; the default where it is unset or empty."""
        return os.environ.get(self.name) or self.default


DATA_ROOT = Variable("MEDSEG_DATA_ROOT", "folder that holds the project's data", "/mnt/Data")
EVENTS = Variable("MEDSEG_EVENTS", "file that stages append their progress to, a JSON a line")
RUN_PID = Variable("MEDSEG_RUN_PID", "process of medseg run: when it is gone, its stages end too")
RUN_ID = Variable("MEDSEG_RUN_ID", "a cluster run's identifier: names the folder of its events")
NAMESPACE = Variable("MEDSEG_NAMESPACE", "your namespace on the cluster")
SETTINGS_FILE = Variable("MEDSEG_PLATFORM_FILE", "YAML file of the site's settings")
SECRETS_FOLDER = Variable(
    "MEDSEG_SECRETS_FOLDER",
    "folder with a folder for each kind of Secret, which holds a file for each key",
    "/etc/medseg/secrets",
)
INPUT_FORMAT = Variable("MEDSEG_INPUT_FORMAT", "what an inference image reads: dicom or nifti")
CA_FILE = Variable(
    "MEDSEG_CA_FILE",
    "PEM file with the authorities that signed the certificates of the site's own servers",
    "/etc/medseg/ca/ca.crt",
)
# named by KFP and MLflow
HOST = Variable("KF_PIPELINES_ENDPOINT", "URL of Kubeflow Pipelines' API")
UI_HOST = Variable("KF_PIPELINES_UI_ENDPOINT", "URL of Kubeflow's pages, where the API has another")
TOKEN_FILE = Variable("KF_PIPELINES_SA_TOKEN_PATH", "file with the token for Kubeflow Pipelines")
TRACKING_URI = Variable("MLFLOW_TRACKING_URI", "the MLflow store, where the config names none")
TASK_RUN = Variable("MLFLOW_RUN_ID", "the MLflow run that Kubeflow Pipelines opened for the task")

CA_CONFIG_MAP = "medseg-ca"
"""The ConfigMap that is mounted where :data:`CA_FILE` lies by default, if a site names no other."""


@dataclass(frozen=True)
class SecretKey:
    """One value of a kind of Secret.

    Attributes:
        name: Its key in the Kubernetes Secret.
        variable: The environment variable that gives it where no file does. ``MLFLOW_…`` and
            ``AWS_…`` are those that MLflow and its S3 client read themselves.
        hidden: Whether it is not shown while it is typed.
    """

    name: str
    variable: str
    hidden: bool = False


@dataclass(frozen=True)
class SecretKind:
    """A kind of Secret: one row of :data:`SECRETS`.

    Attributes:
        kind: Its name in ``medseg secrets``, in a stage's needs, and before ``_secret`` in the name
            of the pipelines' parameter.
        default_name: The Kubernetes Secret that is read where a site names no other.
        purpose: What it gives access to, for descriptions.
        keys: Its values. All are optional.
        site_names: Names that a site is known to keep it under.
        type: Its type in Kubernetes.
    """

    kind: str
    default_name: str
    purpose: str
    keys: tuple[SecretKey, ...]
    site_names: tuple[str, ...] = ()
    type: str = "Opaque"

    @property
    def parameter(self) -> str:
        """The pipelines' parameter, and the site's setting, that names the Kubernetes Secret."""
        return f"{self.kind}_secret"

    @property
    def variables(self) -> dict[str, str]:
        """Its keys and the environment variables that give them outside a cluster."""
        return {key.name: key.variable for key in self.keys}

    @property
    def mount_path(self) -> str:
        """Where a stage's pod has it: a folder with a file for each key."""
        return f"{SECRETS_FOLDER.default}/{self.kind}"

    @property
    def source(self) -> str:
        """Where its values come from, for messages."""
        names = [key.variable for key in self.keys]
        listed = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
        return f"the Secret that {self.parameter} names (in a local run {listed})"


DOCKER_CONFIG = "kubernetes.io/dockerconfigjson"
"""Kubernetes' type of a Secret that holds Docker's ``config.json``."""

SECRETS: dict[str, SecretKind] = {
    row.kind: row
    for row in (
        SecretKind(
            "dicomweb",
            "medseg-dicomweb",
            "access to the PACS: username and password, or a token",
            (
                SecretKey("username", "MEDSEG_DICOMWEB_USERNAME"),
                SecretKey("password", "MEDSEG_DICOMWEB_PASSWORD", hidden=True),
                SecretKey("token", "MEDSEG_DICOMWEB_TOKEN", hidden=True),
            ),
        ),
        SecretKind(
            "mlflow",
            "medseg-mlflow",
            "access to the MLflow server: username and password, or a token",
            (
                SecretKey("username", "MLFLOW_TRACKING_USERNAME"),
                SecretKey("password", "MLFLOW_TRACKING_PASSWORD", hidden=True),
                SecretKey("token", "MLFLOW_TRACKING_TOKEN", hidden=True),
            ),
        ),
        SecretKind(
            "mlflow_artifacts",
            "medseg-mlflow-artifacts",
            "access to the S3 storage of MLflow's artifacts",
            (
                SecretKey("access_key", "AWS_ACCESS_KEY_ID"),
                SecretKey("secret_key", "AWS_SECRET_ACCESS_KEY", hidden=True),
                SecretKey("endpoint", "MLFLOW_S3_ENDPOINT_URL"),
            ),
        ),
        SecretKind(
            "notify",
            "medseg-notify",
            "the webhook that hears of failed runs",
            (SecretKey("url", "MEDSEG_WEBHOOK_URL", hidden=True),),  # it mostly holds a token
        ),
        SecretKind(
            "registry",
            "medseg-registry",
            "the right to push images, as Docker's own configuration",
            (SecretKey(".dockerconfigjson", "MEDSEG_REGISTRY_AUTH", hidden=True),),
            site_names=("maiacloud-dockerhub",),  # MAIA's
            type=DOCKER_CONFIG,
        ),
    )
}
"""Every kind of Secret that a stage may read, by its kind."""


def secret(kind: str, key: str) -> str:
    """A value of a Secret: what its file holds, else its variable, without newlines at the end.

    Args:
        kind: The kind of Secret, such as ``dicomweb``.
        key: The key in it, such as ``token``.

    Returns:
        The value; empty where it was not given, since every Secret is optional.

    Raises:
        UserError: The file cannot be read, or holds no text. No message quotes it.
    """
    row, variable = SECRETS[kind], secret_variable(kind, key)
    path = Path(SECRETS_FOLDER.value) / kind / key
    remedy = f"give it anew with 'medseg secrets {kind}', or mend the file"
    try:
        value = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        value = ""
    except UnicodeDecodeError:
        raise UserError(f"the {kind} Secret: {path} is no text: {remedy}.") from None
    except OSError as error:
        raise UserError(
            f"the {kind} Secret: {path} cannot be read ({error.strerror}): {remedy}."
        ) from None
    source = str(path)
    if not value.strip():
        value, source = os.environ.get(variable, ""), variable
    value = value.rstrip("\r\n")
    structured = row.type == DOCKER_CONFIG  # JSON, which may have lines
    if any(not (each.isprintable() or (structured and each.isspace())) for each in value):
        raise UserError(
            f"the {kind} Secret: {source} holds a line break or another control character: "
            f"{remedy}."
        )
    return value


def secret_environment(kinds: Iterable[str]) -> dict[str, str]:
    """The variables by which another process, or another library, reads these Secrets.

    Args:
        kinds: The kinds of Secret.

    Returns:
        Variables and their values; none for what was not given.

    Raises:
        UserError: As :func:`secret`.
    """
    found = {key.variable: secret(kind, key.name) for kind in kinds for key in SECRETS[kind].keys}
    return {name: value for name, value in found.items() if value}


@contextmanager
def library_secrets(*kinds: str) -> Iterator[None]:
    """Lets other libraries read Secrets by their own variables, as long as the block runs.

    Args:
        kinds: The kinds of Secret, such as ``mlflow``.

    Raises:
        UserError: As :func:`secret`.
    """
    with environment(**secret_environment(kinds)):
        yield


def secret_variable(kind: str, key: str) -> str:
    """The environment variable that gives a Secret's value outside a cluster, for messages.

    Args:
        kind: The kind of Secret.
        key: The key in it.
    """
    return SECRETS[kind].variables[key]


@contextmanager
def environment(**values: str | None) -> Iterator[None]:
    """Sets environment variables for as long as the block runs, then puts the old values back.

    Args:
        values: Values by name; None takes a variable away.
    """
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
