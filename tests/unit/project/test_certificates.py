"""The site's own authorities, and what is said of a certificate that is not trusted."""

from __future__ import annotations

import os
import ssl
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import requests

from medseg.project import UserError, certificate_error, certificates, own_authorities
from medseg.project.variables import Variable
from tests.services.authority import Authority, behind_tls
from tests.services.http import Answer, serve

READERS = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "AWS_CA_BUNDLE")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority") / "ca")


@pytest.fixture(autouse=True)
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the ConfigMap is mounted: an empty folder where there is none."""
    for name in (*READERS, "MEDSEG_CA_FILE", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "mounted"
    (folder / "..data").mkdir(parents=True)  # as Kubernetes has it
    variable = Variable("MEDSEG_CA_FILE", "", str(folder / "ca.crt"))
    monkeypatch.setattr(certificates, "CA_FILE", variable)
    return folder


@pytest.fixture
def url(authority: Authority) -> Iterator[str]:
    with serve(lambda _: Answer(200), authority.context()) as url:
        yield url


def test_without_a_file_nothing_changes(mounted: Path) -> None:
    before = dict(os.environ)
    with own_authorities():
        assert dict(os.environ) == before
    mounted.joinpath("..data").rmdir()
    mounted.rmdir()
    with own_authorities():
        assert dict(os.environ) == before


def test_the_usual_authorities_stay(mounted: Path, authority: Authority, url: str) -> None:
    key = authority.key_file.read_text()
    (mounted / "ca.crt").write_text(f"{key}\n{authority.file.read_text()}")
    before = dict(os.environ)
    with own_authorities():
        (bundle,) = {Path(os.environ[name]) for name in READERS}
        assert bundle.parent.stat().st_mode & 0o077 == 0
        text = bundle.read_text()
        assert "PRIVATE" not in text
        assert text.count("BEGIN CERTIFICATE") > 100
        assert requests.get(url, timeout=5).ok
        with urllib.request.urlopen(url, timeout=5) as answer:
            assert answer.status == 200
    assert dict(os.environ) == before
    assert not bundle.parent.exists()


def test_a_bundle_of_the_persons_own_stays_the_only_one(
    mounted: Path, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    other = Authority(tmp_path / "other", "Other Root")
    (mounted / "ca.crt").write_text(other.file.read_text())
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.file))
    with own_authorities():
        text = Path(os.environ["SSL_CERT_FILE"]).read_text()
        assert text.count("BEGIN CERTIFICATE") == 2
        assert requests.get(url, timeout=5).ok


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("ca.pem", b"x", r"the ConfigMap that ca_config_map names: .*has no key ca\.crt, only ca"),
        ("ca.crt", b"0\x82\x05\xfe", "ca.crt holds no certificate that can be read: give the auth"),
        ("ca.crt", b"", "ca.crt holds no certificate that can be read"),
        (
            "ca.crt",
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            r"holds no certificate that can be read: give the authority's certificate as PEM \(op",
        ),
    ],
)
def test_a_config_map_that_holds_none(
    mounted: Path, name: str, content: bytes, message: str
) -> None:
    (mounted / name).write_bytes(content)
    with pytest.raises(UserError, match=message), own_authorities():
        pytest.fail("the stage would run")


def test_a_file_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MEDSEG_CA_FILE", str(tmp_path / "nowhere.crt"))
    message = r"MEDSEG_CA_FILE: .*nowhere\.crt is no file"
    with pytest.raises(UserError, match=message), own_authorities():
        pytest.fail("the stage would run")


def _error(url: str) -> str:
    with pytest.raises(requests.exceptions.SSLError) as caught:
        requests.get(url, timeout=5)
    with pytest.raises(URLError) as also:
        urllib.request.urlopen(url, timeout=5)
    found = {str(certificate_error(each.value, url)) for each in (caught, also)}
    assert len(found) == 1
    return found.pop()


def test_the_wrong_authority_is_said_to_be_there(mounted: Path, tmp_path: Path, url: str) -> None:
    (mounted / "ca.crt").write_text(Authority(tmp_path / "other", "Other Root").file.read_text())
    with own_authorities():
        text = _error(url)
    assert 'its issuer is "Hospital Root, Hospital". The certificates that are given do not' in text


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"valid": timedelta(days=-1)}, "has expired, or is not valid yet: have it renewed"),
        ({"names": ["pacs.site"]}, "was made for another name: write the server's address"),
    ],
)
def test_what_no_authority_mends(
    mounted: Path, authority: Authority, made: dict[str, Any], message: str
) -> None:
    (mounted / "ca.crt").write_text(authority.file.read_text())
    with serve(lambda _: Answer(200), authority.context(**made)) as url, own_authorities():
        assert message in _error(url)


def test_beyond_a_proxy_the_proxy_asks(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    error = ssl.SSLCertVerificationError("certificate verify failed: unable to get local issuer")
    with behind_tls(int(url.rpartition(":")[2]), None, asked) as proxy:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy}")
        text = str(certificate_error(error, "https://pacs.site/dicom-web"))
    assert set(asked) == {"pacs.site:443"}
    assert 'pacs.site:443 is not trusted: its issuer is "Hospital Root, Hospital".' in text


def test_a_server_that_is_gone() -> None:
    error = ssl.SSLCertVerificationError("certificate verify failed: unable to get local issuer")
    text = str(certificate_error(error, "https://localhost:1"))
    assert "localhost:1 is not trusted: its issuer is an unknown authority." in text


def test_other_errors_are_none() -> None:
    assert certificate_error(ConnectionRefusedError("refused"), "https://pacs.site") is None
    assert certificate_error("manifest unknown") is None
    go = 'Get "https://r.site:5000/v2/": x509: certificate is valid for a.site, not r.site'
    assert "r.site:5000 was made for another name" in str(certificate_error(go))
