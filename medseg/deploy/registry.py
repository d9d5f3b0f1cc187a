"""Image names, access to registries, and what goes wrong there in words."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from medseg.project import UserError, certificate_error, secret

_HOST = r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?(?::\d{1,5})?)"
_PATH = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"^(?:(?P<registry>{_HOST})/)?(?P<path>{_PATH}(?:/{_PATH})*)(?::(?P<tag>\w[\w.-]{{0,127}}))?$"
)

_HELPER = re.compile(r"docker-credential-[\w.-]+|getting credentials")


@dataclass(frozen=True)
class ImageName:
    """A name such as ``registry.example.org/group/spleen:1.0`` (OCI distribution specification).

    Attributes:
        registry: Host and port; ``docker.io`` where the name starts with a user.
        path: The repository in the registry.
        tag: The tag.
    """

    registry: str
    path: str
    tag: str

    @classmethod
    def parse(cls, text: str, field: str) -> ImageName:
        """Reads a name that has a tag.

        Args:
            text: The name.
            field: The parameter, for the message.

        Raises:
            UserError: It is no image name, or names no registry or no tag.
        """
        text = text.strip()
        form = "write it as registry/path:tag, such as registry.example.org/group/spleen:1.0"
        match = _REFERENCE.match(text)
        if match is None:
            raise UserError(
                f"{field}: {text!r} is no image name: {form} (the path in lower-case letters)."
            )
        registry, path, tag = match["registry"], match["path"], match["tag"]
        if registry and not ("." in registry or ":" in registry or registry == "localhost"):
            registry, path = "docker.io", f"{registry}/{path}"  # as Docker reads user/name
        if not registry:
            raise UserError(f"{field}: {text!r} names no registry: {form}.")
        if not tag:
            raise UserError(f"{field}: {text!r} has no tag: {form}.")
        return cls(registry, path, tag)

    def __str__(self) -> str:
        return f"{self.registry}/{self.path}:{self.tag}"

    @property
    def is_local(self) -> bool:
        """Whether the registry is on this machine, where plain HTTP is no risk."""
        host = self.registry.partition(":")[0]
        return host == "localhost" or host.startswith("127.")


@contextlib.contextmanager
def credentials() -> Iterator[list[str]]:
    """Skopeo's options for the credentials of the Secret ``registry``, if it is given.

    They lie in a temporary file, off the volume, as long as the block runs. Without it
    skopeo takes those of ``docker login``.

    Raises:
        UserError: The Secret is no Docker configuration.
    """
    content = secret("registry", ".dockerconfigjson").strip()
    if not content:
        yield []
        return
    try:
        sound = isinstance(json.loads(content)["auths"], dict)
    except (ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        raise UserError(
            "the registry Secret is no Docker configuration: its key .dockerconfigjson must hold "
            '{"auths": {…}} (kubectl create secret docker-registry makes one).'
        )
    with tempfile.NamedTemporaryFile("w", prefix="auth-", suffix=".json") as file:
        file.write(content)
        file.flush()
        yield ["--authfile", file.name]


def remote_digest(
    name: ImageName, options: Sequence[str], *, insecure: bool, denied_is_missing: bool = False
) -> str | None:
    """The digest of an image in its registry, or None where there is none of this name.

    Args:
        name: The image.
        options: As from :func:`credentials`.
        insecure: The registry speaks plain HTTP, or its certificate is not to be checked.
        denied_is_missing: Take an image that must not be read as one that is not there: whether
            it may be written shows when it is.

    Raises:
        UserError: The registry cannot be reached or denies access.
    """
    command = ["skopeo", "inspect", "--raw", *options, *_tls("--", name, insecure)]
    done = _run([*command, f"docker://{name}"])
    if done.returncode == 0:
        return "sha256:" + hashlib.sha256(done.stdout).hexdigest()
    text = done.stderr.decode(errors="replace")
    if _is_missing(text) or (denied_is_missing and _is_denied(text)):
        return None
    raise explain(text, name)


def _is_missing(text: str) -> bool:
    """Whether skopeo says that there is no such image."""
    return not _HELPER.search(text) and bool(
        re.search(r"manifest unknown|name unknown|NAME_UNKNOWN|status 404|not found", text, re.I)
    )


def _is_denied(text: str) -> bool:
    """Whether a registry denies access without a word against the credentials.

    Docker Hub answers so where there is no such repository.
    """
    return bool(re.search(r"\bdenied\b", text)) and "invalid username" not in text


def copy(
    source: str,
    target: str,
    name: ImageName,
    options: Sequence[str],
    *,
    insecure: bool,
    environment: dict[str, str],
) -> None:
    """Copies an image with skopeo between a registry and an OCI layout.

    Args:
        source: skopeo's name of the source.
        target: skopeo's name of the target.
        name: The image in the registry, for TLS and messages.
        options: More options.
        insecure: As in :func:`remote_digest`.
        environment: Added to skopeo's environment.

    Raises:
        UserError: The registry cannot be reached or denies access, or the image does not exist.
    """
    side = "--src-" if source.startswith("docker://") else "--dest-"
    command = ["skopeo", "copy", "--quiet", *options, *_tls(side, name, insecure), source, target]
    done = _run(command, environment)
    if done.returncode:
        raise explain(done.stderr.decode(errors="replace"), name)


def explain(text: str, name: ImageName) -> UserError:
    """Turns what skopeo says into a sentence.

    Args:
        text: skopeo's standard error.
        name: The image that it was about.
    """
    if found := _HELPER.search(text):
        return UserError(
            f"the credentials for {name.registry} cannot be had: {found[0]} does not work; install "
            "the helper that ~/.docker/config.json names, or remove it there and run docker login."
        )
    if re.search(
        r"unauthorized|authentication required|denied|invalid username"
        r"|\b40[13] \((?:Unauthorized|Forbidden)",
        text,
        re.I,
    ):
        return UserError(
            f"the registry {name.registry} denies access to {name.path}: check the credentials in "
            "the Secret that registry_secret names (or docker login), and that they may push there."
        )
    if explained := certificate_error(text, f"https://{name.registry}"):
        return explained
    if "HTTP response to HTTPS client" in text:
        return UserError(
            f"the registry {name.registry} speaks no TLS: set insecure_registry for one on your "
            "own network."
        )
    if re.search(
        r"refused|no such host|timeout|unreachable|dial tcp|lookup |reset by peer|EOF", text
    ):
        return UserError(
            f"the registry {name.registry} cannot be reached: check its name and port in "
            f"{name}, and that it is running."
        )
    if _is_missing(text):
        return UserError(f"the image {name} does not exist in its registry: check its name.")
    last = text.strip().splitlines()[-1:] or ["no message"]
    return UserError(f"skopeo failed on {name}: {last[0]}")


def _tls(side: str, name: ImageName, insecure: bool) -> list[str]:
    return [f"{side}tls-verify=false"] if insecure or name.is_local else []


def _run(
    command: Sequence[str], environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            command, check=False, capture_output=True, env={**os.environ, **(environment or {})}
        )
    except FileNotFoundError:
        raise UserError(
            f"{command[0]} is not installed: use the builder image, or sudo apt-get install "
            f"{command[0]}."
        ) from None
