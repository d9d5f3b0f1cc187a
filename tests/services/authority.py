"""An authority of a site's own, and TLS with its certificates before any server."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID


class Authority:
    """Signs certificates for this machine.

    Attributes:
        file: Its own certificate, as PEM.
        key_file: Its key.

    Args:
        folder: A new folder for its files.
        name: Its name.
    """

    def __init__(self, folder: Path, name: str = "Hospital Root") -> None:
        folder.mkdir()
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Hospital"),
                x509.NameAttribute(NameOID.COMMON_NAME, name),
            ]
        )
        is_authority = x509.BasicConstraints(ca=True, path_length=None)
        self.file = self._sign("ca", self._name, self._key, is_authority, timedelta(days=1))
        self.key_file = self.file.with_suffix(".key")

    def context(
        self,
        names: Sequence[str] = ("localhost", "127.0.0.1", "0.0.0.0"),
        valid: timedelta = timedelta(days=1),
    ) -> ssl.SSLContext:
        """A server's side of TLS.

        Args:
            names: The host names and addresses in its certificate.
            valid: For how long from now.
        """
        hosts = [
            x509.IPAddress(ip_address(name)) if name[0].isdigit() else x509.DNSName(name)
            for name in names
        ]
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
        file = self._sign("server", subject, key, x509.SubjectAlternativeName(hosts), valid)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file, file.with_suffix(".key"))
        return context

    def _sign(
        self,
        stem: str,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        extension: x509.ExtensionType,
        valid: timedelta,
    ) -> Path:
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=2))
            .not_valid_after(now + valid)
            .add_extension(extension, critical=stem == "ca")
            .sign(self._key, hashes.SHA256())
        )
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (self.folder / f"{stem}.key").write_bytes(private)
        file = self.folder / f"{stem}.crt"
        file.write_bytes(certificate.public_bytes(Encoding.PEM))
        return file


@contextlib.contextmanager
def behind_tls(
    port: int, context: ssl.SSLContext | None, asked: list[str] | None = None
) -> Iterator[int]:
    """Ends TLS on another port of this machine and passes on to ``port``.

    Args:
        port: A server on 127.0.0.1.
        context: The server's side of TLS; None: an HTTP proxy, which sends everybody there.
        asked: Takes whom the proxy was asked for.
    """

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                target.write(data)
                await target.drain()
        target.close()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if context is None:
            request = await reader.readuntil(b"\r\n\r\n")
            (asked if asked is not None else []).append(request.decode().split()[1])
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer))
        finally:
            inner_writer.close()

    async def run(started: Future[tuple[int, Callable[[], object]]]) -> None:
        ended, loop = asyncio.Event(), asyncio.get_running_loop()
        server = await asyncio.start_server(pass_on, "0.0.0.0", 0, ssl=context)
        stop = partial(loop.call_soon_threadsafe, ended.set)
        started.set_result((server.sockets[0].getsockname()[1], stop))
        await ended.wait()
        server.close()  # and at its end asyncio.run cancels what is still open

    started: Future[tuple[int, Callable[[], object]]] = Future()
    thread = threading.Thread(target=lambda: asyncio.run(run(started)), daemon=True)
    thread.start()
    own, stop = started.result(timeout=10)
    try:
        yield own
    finally:
        stop()
        thread.join()
