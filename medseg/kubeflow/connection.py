"""The way to a Kubeflow Pipelines installation: host, token, certificates, errors in words."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import logging
import os
import warnings
from collections.abc import Generator, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import requests
import urllib3

from medseg.kubeflow.namespace import NAMESPACE_FILE
from medseg.project import UserError, certificate_error
from medseg.project.variables import HOST, NAMESPACE, TOKEN_FILE, UI_HOST

SINGLE_USER_NAMESPACE = "kubeflow"
"""Where the runs of a single-user installation live."""

_TO_LOGIN = (301, 302, 303, 307, 401)  # a browser is sent to the login page with a redirection


class PassingError(UserError):
    """An error that may be gone at the next look."""


class Api:
    """The API of an installation, seen from one namespace, once it has answered.

    Attributes:
        host: Its URL.
        namespace: Where the user's claims, Secrets and pods are.
        own_namespace: Its own word for that; empty for a single-user installation, which refuses
            any name.
        server: What the installation says of itself (the answer to ``healthz``).
        client: The ``kfp.Client``.
        models: ``kfp_server_api``, whose models the client takes.

    Args:
        host: URL of the API, or empty for the environment's.
        namespace: The user's namespace, or empty for the environment's.

    Raises:
        UserError: No host is known, it does not answer or is no Kubeflow, the token is not taken,
            or there is no right to read in the namespace.
    """

    def __init__(self, host: str, namespace: str) -> None:
        self.host = _find_host(host)
        self._token_file = token_file = _find_token_file()
        with _quiet():
            import kfp
            import kfp_server_api
        self.models = kfp_server_api
        self.server, self._clock_ahead = _probe(self.host, token_file)
        multi_user = bool(self.server.get("multi_user"))
        self.namespace = (
            namespace
            or NAMESPACE.value
            or (_pod_namespace() if multi_user else SINGLE_USER_NAMESPACE)
        )
        if not self.namespace:
            raise UserError(
                f"{self.host} serves several users: name your namespace with --namespace."
            )
        self.own_namespace = self.namespace if multi_user else ""
        with _quiet():
            self.client = kfp.Client(
                host=self.host,
                namespace=self.own_namespace or SINGLE_USER_NAMESPACE,
                **_transport(self.host),
                credentials=token_file
                and kfp.client.ServiceAccountTokenVolumeCredentials(str(token_file)),
            )
        # a namespace that an earlier client left in ~/.config/kfp would win over none
        self.client._context_setting["namespace"] = self.own_namespace
        with self.call(f"reading in the namespace {self.namespace}"):
            self.client.list_pipelines(page_size=1, namespace=self.own_namespace or None)

    def page(self, kind: str, identifier: str) -> str:
        """The URL of a page of the UI.

        Args:
            kind: ``pipelines``, ``runs`` or ``recurringrun``.
            identifier: What it is about.
        """
        return f"{(UI_HOST.value or self.host).rstrip('/')}/#/{kind}/details/{identifier}"

    def now(self) -> datetime:
        """The time on the installation's clock, which this machine's may differ from."""
        return datetime.now(UTC) + self._clock_ahead

    def read(self, path: str) -> Iterator[bytes] | None:
        """What an address that the published client leaves out answers with, in pieces.

        Args:
            path: The path below the host.

        Returns:
            The pieces; None where the installation has nothing there.

        Raises:
            UserError: The token is not taken, or there is no right to read it; a
                :class:`PassingError` where the installation does not answer.
        """
        try:
            answer = requests.get(
                f"{self.host}/{path}",
                headers=_login(self._token_file),
                timeout=(20, 120),
                allow_redirects=False,
                stream=True,
            )
        except requests.RequestException:
            raise PassingError(f"{self.host} no longer answers.") from None
        if answer.status_code in (*_TO_LOGIN, 403):
            answer.close()
            status = 403 if answer.status_code == 403 else 401
            raise _explain(status, "", "reading a log", self.host, self.namespace)
        pieces = self._pieces(answer)
        first = next(pieces, b"")
        a_page = answer.headers.get("Content-Type", "").startswith("text/html")
        # an error after the answer's beginning comes with status 200
        if answer.status_code != 200 or a_page or first.startswith(b'{"error_message"'):
            pieces.close()
            return None
        return itertools.chain([first], pieces)

    def _pieces(self, answer: requests.Response) -> Generator[bytes]:
        with answer:
            try:
                yield from answer.iter_content(64 * 1024)
            except requests.RequestException:
                raise PassingError(f"{self.host} no longer answers.") from None

    @contextlib.contextmanager
    def call(self, doing: str) -> Iterator[None]:
        """Frames calls of the client: no chatter, and one sentence for an error.

        Args:
            doing: What they are for, such as ``starting the run``.

        Raises:
            UserError: The installation refused; a :class:`PassingError` where it may not the next
                time.
        """
        try:
            with _quiet():
                yield
        except self.models.ApiException as error:
            raise _explain(error.status, error.body, doing, self.host, self.namespace) from None
        except Exception as error:
            if not _is_connection_error(error):
                raise
            raise PassingError(f"{doing} failed: {self.host} no longer answers.") from None


def ask_installation(host: str = "") -> dict[str, Any]:
    """What an installation says of itself, without more of a connection to it.

    Args:
        host: As :class:`Api` takes it.

    Raises:
        UserError: No host is known, it does not answer or is no Kubeflow, or it wants a login.
    """
    return _probe(_find_host(host), _find_token_file())[0]


def _find_host(host: str) -> str:
    host = host or HOST.value
    if not host and os.environ.get("KUBERNETES_SERVICE_HOST"):
        host = "http://ml-pipeline.kubeflow.svc.cluster.local:8888"
    if not host:
        raise UserError(
            f"no host is known: give --host or {HOST.name}, such as "
            "https://kubeflow.example.org/pipeline."
        )
    if not host.startswith(("http://", "https://")):
        raise UserError(f"the host {host!r} must start with https:// or http://.")
    return host.rstrip("/")


def _pod_namespace() -> str:
    with contextlib.suppress(OSError):
        return Path(NAMESPACE_FILE).read_text(encoding="utf-8").strip()
    return ""


def _find_token_file() -> Path | None:
    with _quiet():
        from kfp.client import KF_PIPELINES_SA_TOKEN_PATH
    named = TOKEN_FILE.value
    path = Path(named or KF_PIPELINES_SA_TOKEN_PATH)
    if path.is_file():
        return path
    if named:
        raise UserError(f"{TOKEN_FILE.name} names {path}, which is no file.")
    return None


def _login(token_file: Path | None) -> dict[str, str]:
    if token_file is None:
        return {}
    return {"Authorization": f"Bearer {token_file.read_text(encoding='utf-8').strip()}"}


def _probe(host: str, token_file: Path | None) -> tuple[dict[str, Any], timedelta]:
    """Asks the host what it is; ``kfp.Client`` itself would try for half a minute and more.

    Returns:
        What it says of itself, and how far its clock is ahead of this machine's.
    """
    try:
        answer = requests.get(
            f"{host}/apis/v2beta1/healthz",
            headers=_login(token_file),
            timeout=20,
            allow_redirects=False,
        )
    except requests.RequestException as error:
        raise certificate_error(error, host) or UserError(
            f"{host} cannot be reached: check the host."
        ) from None
    if answer.status_code in _TO_LOGIN:
        raise _explain(401, "", "asking for the API", host, "")
    if answer.status_code == 403:
        raise _explain(403, "", "asking for the API", host, "")
    try:
        content = answer.json()
        if answer.status_code != 200 or not isinstance(content, dict):
            raise ValueError
    except ValueError:
        raise UserError(
            f"{host} is no Kubeflow Pipelines API (healthz answers {answer.status_code}): "
            "the host is often the Kubeflow URL with /pipeline."
        ) from None
    if content.get("apiServerReady") is False:
        raise UserError(f"{host} shows its pages, but its API is not there: try again in a while.")
    ahead = timedelta()
    with contextlib.suppress(KeyError, TypeError, ValueError):  # a server need not tell the time
        ahead = parsedate_to_datetime(answer.headers["Date"]) - datetime.now(UTC)
    return content, ahead if abs(ahead) > timedelta(seconds=5) else timedelta()


def _transport(host: str) -> dict[str, str]:
    """The certificates and the proxy of the environment, which kfp's own client leaves out."""
    found = requests.Session().merge_environment_settings(host, {}, None, None, None)
    proxy = requests.utils.select_proxy(host, found["proxies"])
    certificates = found["verify"] if isinstance(found["verify"], str) else ""
    return {
        **({"proxy": proxy} if proxy else {}),
        **({"ssl_ca_cert": certificates} if certificates else {}),
    }


def _explain(status: int, body: Any, doing: str, host: str, namespace: str) -> UserError:
    if status == 401:
        return UserError(
            f"{host} asks for a login or a token that has not expired: put a new token into a file "
            f"and name it in {TOKEN_FILE.name}."
        )
    if status == 403:
        where = f" in the namespace {namespace}" if namespace else ""
        return UserError(
            f"{doing} is not allowed{where}: ask its owner for the right to edit, "
            "or name another with --namespace."
        )
    if status == 404:
        return UserError(f"{doing} failed: {host} does not know it.")
    try:
        content = json.loads(body or "{}")
        message = content.get("message") or content.get("error") or content
    except (ValueError, AttributeError):
        message = str(body)[:200]
    kind = PassingError if status >= 500 or status == 429 else UserError
    return kind(f"{doing} failed: {host} answers {status}: {message}.")


def _is_connection_error(error: Exception) -> bool:
    return isinstance(error, urllib3.exceptions.HTTPError | OSError)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what kfp prints, warns of and logs; what matters is said by this module."""
    logger = logging.getLogger()
    level = logger.level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logger.setLevel(level)
