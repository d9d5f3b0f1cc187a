"""DICOMweb: a client for a server, and its errors as sentences."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import requests
from dicomweb_client.web import DICOMwebClient
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from medseg.project import UserError, certificate_error, secret
from medseg.project.variables import SECRETS


def url_scheme(url: str, *, field: str) -> str:
    """The scheme of what a parameter names, in small letters; empty for a path.

    Args:
        url: A URL, or a path.
        field: The parameter, for the message.

    Raises:
        UserError: It is an http(s) URL without a server, or with a port that is no number.
    """
    scheme = ""
    try:
        parts = urlsplit(url)
        scheme = parts.scheme.lower()
        malformed = not parts.hostname or parts.port == 0  # looks at the port, too
    except ValueError:
        scheme = scheme or url.partition(":")[0].lower()
        malformed = True
    if malformed and scheme in ("http", "https"):  # it is not quoted: it may hold a password
        raise UserError(
            f"{field}: the {scheme} URL is malformed: write it as "
            "https://server.example.org:8042/dicom-web."
        )
    return scheme


def web_client(url: str) -> DICOMwebClient:
    """A client that waits out short failures; its credentials are those of the Secret ``dicomweb``.

    A token is sent as a bearer token; else user name and password by HTTP basic authentication.

    Args:
        url: The server's DICOMweb root.

    Raises:
        UserError: The URL carries a password, which would end in logs.
    """
    if urlsplit(url).username or urlsplit(url).password:
        raise UserError(
            f"the DICOMweb URL of {urlsplit(url).hostname} carries a user name or password: give "
            f"them by {SECRETS['dicomweb'].source}."
        )
    session = requests.Session()
    retry = Retry(
        total=4,
        other=0,  # a certificate that is not trusted now will not be later
        backoff_factor=0.5,
        status_forcelist=(429, 502, 503, 504),
        allowed_methods=None,
    )
    session.mount("http://", HTTPAdapter(max_retries=retry))
    session.mount("https://", HTTPAdapter(max_retries=retry))
    if token := secret("dicomweb", "token"):
        session.headers["Authorization"] = f"Bearer {token}"
    elif username := secret("dicomweb", "username"):
        session.auth = (username, secret("dicomweb", "password"))
    client = DICOMwebClient(url.rstrip("/"), session=session, timeout=(10, 300))
    client.set_http_retry_params(retry=False)  # the session does it, connection errors included
    return client


def holds_studies(url: str) -> bool:
    """Whether a server holds any study that these credentials may see.

    Args:
        url: The server's DICOMweb root.

    Raises:
        UserError: It does not answer, or refuses.
    """
    client = web_client(url)
    with server_errors(url):
        return bool(client.search_for_studies(limit=1))


@contextmanager
def server_errors(url: str) -> Iterator[None]:
    """Turns an error of the server or the network into a sentence.

    Args:
        url: The server's DICOMweb root.

    Raises:
        UserError: In place of any error of ``requests``.
    """
    try:
        yield
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else "an error"
        if status in (401, 403):
            advice = (
                "user name and password, or a token, that may read and write there come from "
                f"{SECRETS['dicomweb'].source}"
            )
        elif status == 404:
            advice = "check that the URL is the DICOMweb root (Orthanc: …/dicom-web)"
        else:
            advice = "look into the server's log"
        raise UserError(f"the DICOMweb server {url} answered {status}: {advice}.") from None
    except requests.RequestException as error:
        if explained := certificate_error(error, url):
            raise explained from None
        raise UserError(
            f"the DICOMweb server {url} cannot be reached ({type(error).__name__}): "
            "check the URL and the network."
        ) from None
