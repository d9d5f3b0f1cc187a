"""Certificates of a site's own authority: trusted by every library that opens a connection.

Every command and stage passes here, most without such a file: what is slow to import waits.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from medseg.project.errors import UserError
from medseg.project.variables import CA_CONFIG_MAP, CA_FILE, environment

_READERS = (
    "REQUESTS_CA_BUNDLE",  # requests, and with it dicomweb-client and MLflow
    "SSL_CERT_FILE",  # Python's ssl (urllib, pynetdicom), minio, skopeo
    "AWS_CA_BUNDLE",  # boto3
)
_SYSTEM = "/etc/ssl/certs/ca-certificates.crt"  # Debian's, as OpenSSL itself reads a folder there
_BLOCK = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.S)

_UNTRUSTED = re.compile(r"CERTIFICATE_VERIFY_FAILED|certificate verify failed|x509: ", re.I)
_EXPIRED = re.compile(r"has expired|not yet valid", re.I)
_MISNAMED = re.compile(
    r"mismatch|certificate is (?:not )?valid for|cannot validate certificate for"
)
_HOST = re.compile(
    r"host='(?P<host>[^']+)', port=(?P<port>\d+)|https://(?P<place>\[[^\]]+\](?::\d+)?|[\w.:-]+)"
)

_WAIT_S = 5


@contextmanager
def own_authorities() -> Iterator[None]:
    """Trusts the site's own authorities beside the usual ones, as long as the block runs.

    They are those of :data:`~medseg.project.variables.CA_FILE`, on a cluster the key ``ca.crt`` of
    the ConfigMap. One bundle of theirs and the usual ones (those that the environment names, else
    the system's and certifi's) lies in a folder that only this user may enter, and the variables
    that the libraries read name it. Without such a file nothing changes.

    Raises:
        UserError: The file cannot be read, or holds no certificate.
    """
    own = _own()
    if not own:
        yield
        return
    folder = Path(tempfile.mkdtemp(prefix="medseg-ca-"))
    try:
        bundle = folder / "ca.crt"
        texts = (path.read_text(encoding="utf-8", errors="replace") for path in _usual())
        bundle.write_text("\n".join([*own, *texts]), encoding="utf-8")
        with environment(**dict.fromkeys(_READERS, str(bundle))):
            yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _own() -> list[str]:
    """The certificates of the site's file; none where there is no file."""
    import ssl

    path = Path(CA_FILE.value)
    mounted = str(path) == CA_FILE.default
    what = "the ConfigMap that ca_config_map names" if mounted else CA_FILE.name
    remedy = "give the authority's certificate as PEM (openssl x509 -in FILE makes it)"
    try:
        blocks = _BLOCK.findall(path.read_text(encoding="utf-8"))
        if blocks:
            ssl.create_default_context(cadata="\n".join(blocks))
            return [str(each) for each in blocks]
    except FileNotFoundError:
        keys = [p.name for p in path.parent.glob("[!.]*")] if mounted else []
        if mounted and not keys:
            return []
        found = f"has no key {path.name}, only {', '.join(sorted(keys))}" if keys else "is no file"
        raise UserError(f"{what}: {path} {found}: {remedy}.") from None
    except (UnicodeDecodeError, ssl.SSLError):
        pass
    except OSError as error:
        raise UserError(f"{what}: {path} cannot be read ({error.strerror}): {remedy}.") from None
    raise UserError(f"{what}: {path} holds no certificate that can be read: {remedy}.")


def _usual() -> list[Path]:
    """What is trusted without the site's file."""
    import ssl

    import certifi

    named = {os.environ[name] for name in _READERS if os.environ.get(name)}
    usual = named or {_SYSTEM, certifi.where(), ssl.get_default_verify_paths().cafile or _SYSTEM}
    paths = [Path(name) for name in sorted(usual)]
    folders = [file for path in paths if path.is_dir() for file in sorted(path.iterdir())]
    return [path for path in (*paths, *folders) if path.is_file()]


def certificate_error(error: object, url: str = "") -> UserError | None:
    """Turns an error of TLS into a sentence that names the host, the issuer and the remedy.

    The server is asked once more for its certificate, as libraries do not hand it on.

    Args:
        error: What a library raised, or a program wrote.
        url: Whom it was about (``https://…``, or ``host:port``), where the error names nobody.

    Returns:
        The error to show; None where this one is not about a certificate.
    """
    text = _whole_text(error)
    if not _UNTRUSTED.search(text):
        return None
    host, port = _server(text, url)
    name = f"{host}:{port}" if host else "the server"
    if _EXPIRED.search(text):
        return UserError(
            f"the certificate of {name} has expired, or is not valid yet: have it renewed, or set "
            "the clock of this machine right."
        )
    if _MISNAMED.search(text):
        return UserError(
            f"the certificate of {name} was made for another name: write the server's address with "
            "the name that stands in its certificate."
        )
    issuer = (host and _issuer(host, port)) or "an unknown authority"
    missing = "The certificates that are given do not include it: p" if _has_own() else "P"
    return UserError(
        f"the certificate of {name} is not trusted: its issuer is {issuer}. {missing}ut that "
        "authority's certificate (PEM) under the key ca.crt into the ConfigMap that ca_config_map "
        f"names (kubectl create configmap {CA_CONFIG_MAP} --from-file=ca.crt=FILE); outside a "
        f"cluster name its file in {CA_FILE.name}."
    )


def _has_own() -> bool:
    try:
        return bool(_own())
    except UserError:
        return False


def _whole_text(error: object) -> str:
    """Its text and that of the errors behind it."""
    texts = [str(error)]
    while isinstance(error, BaseException) and len(texts) < 10:
        cause = error.__cause__ or error.__context__ or getattr(error, "reason", None)
        texts.append(repr(error))
        error = cause
    return "\n".join(texts)


def _server(text: str, url: str) -> tuple[str, int]:
    found = _HOST.search(text)
    if found and found["host"]:
        return found["host"].strip("[]"), int(found["port"])
    place = found["place"] if found else url.partition("://")[2] or url
    with suppress(ValueError):  # a port that is none
        parts = urlsplit(f"https://{place}")
        return parts.hostname or "", parts.port or 443
    return "", 443


def _issuer(host: str, port: int) -> str:
    """Who signed a server's certificate, in words; empty where the server does not tell."""
    import http.client
    import ssl

    try:
        certificate, _ = _peer(host, port)
        # ssl explains a certificate only where it trusts it
        _, found = _peer(host, port, trusted=ssl.DER_cert_to_PEM_cert(certificate))
    except (OSError, ValueError, http.client.HTTPException):
        return ""
    issuer: Any = found.get("issuer", ())
    parts = dict(item for part in issuer for item in part)
    names = (parts.get("commonName"), parts.get("organizationName"))
    text = ", ".join(filter(None, names))
    return f'"{"".join(filter(str.isprintable, text))[:200]}"' if text else ""


def _peer(host: str, port: int, *, trusted: str | None = None) -> tuple[bytes, dict[str, Any]]:
    """A server's certificate, by the proxy of the environment, and what ssl says of it."""
    import http.client
    import ssl
    import urllib.request

    context = ssl.create_default_context(cadata=trusted)
    context.check_hostname = False
    if trusted:
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    else:
        context.verify_mode = ssl.CERT_NONE
    proxy = urlsplit(urllib.request.getproxies().get("https", ""))
    direct = not proxy.hostname or urllib.request.proxy_bypass(host)
    first = (host, port) if direct else (str(proxy.hostname), proxy.port or 80)
    connection = http.client.HTTPSConnection(*first, timeout=_WAIT_S, context=context)
    if not direct:
        connection.set_tunnel(host, port)
    with closing(connection):
        connection.connect()
        # HTTPSConnection's socket is one of ssl, which its type does not say
        peer: Any = connection.sock
        return peer.getpeercert(binary_form=True), peer.getpeercert()
