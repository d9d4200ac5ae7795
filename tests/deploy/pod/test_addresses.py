"""Addresses with credentials: masked in all output, complete in requests, protected against redirects."""

from __future__ import annotations

import ssl
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import certifi
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from deploy.errors import WrongUse
from deploy.pod.agent.sources import CopyFailed, open_source
from deploy.pod.base.addresses import hide, shown, why_not
from deploy.workspace import sources
from deploy.workspace.sources import Url, UrlFiles

BODY = bytes(range(256)) * 8


@dataclass
class Site:
    """A server that answers range requests with the right signature, and can redirect.

    `asked`: path, query and Authorization header of each request.
    """

    url: str
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    redirect_to: str | None = None
    sends_all: bool = False  # ignores the end of the range
    refuses_head: bool = True  # as S3 does for an address that is signed for GET


@pytest.fixture
def site() -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            made.asked.append((parts.path, parts.query, self.headers.get("Authorization")))
            if made.redirect_to and parts.path == "/start/images.npy":
                self.send_response(302)
                self.send_header("Location", made.redirect_to)
            elif parts.query != "sig=SECRET" or (self.command == "HEAD" and made.refuses_head):
                self.send_response(403)
            else:
                first, last = (self.headers.get("Range") or "bytes=0-")[6:].split("-")
                body = BODY[int(first) : int(last) + 1 if last and not made.sends_all else None]
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {first}-{int(first) + len(body) - 1}/{len(BODY)}")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                return
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815 - the library's name

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        made = Site(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield made
        server.shutdown()


def test_a_signature_goes_with_every_file_of_the_data_set(site: Site) -> None:
    """In the address of each file, the file's name comes before the query."""
    origin = sources.parse(f"{site.url}/faces/?sig=SECRET#token", Path("x"), local=False)
    assert isinstance(origin.path, Url)
    images = origin.path / "images.npy"
    files = UrlFiles()
    assert files.read(images.with_name("manifest.json"), 3, 5) == BODY[3:8]
    assert files.size(images) == len(BODY)
    assert b"".join(bytes(piece) for piece in open_source(str(images)).read(10, 20)) == BODY[10:30]
    assert {path for path, _, _ in site.asked} == {"/faces/manifest.json", "/faces/images.npy"}
    assert {query for _, query, _ in site.asked} == {"sig=SECRET"}
    assert (images.name, images.stem, images.parent.name) == ("images.npy", "images", "faces")


def test_a_password_goes_to_its_own_host_only(site: Site) -> None:
    address = site.url.replace("://", "://u:p%40ss@")
    site.redirect_to = f"{site.url}/images.npy?sig=SECRET"
    assert UrlFiles().read(f"{address}/start/images.npy", 0, 4) == BODY[:4]
    assert [password for _, _, password in site.asked] == ["Basic dTpwQHNz", None]


@pytest.mark.parametrize("to", ["ftp://127.0.0.1/x", "file:///etc/passwd", "gopher://127.0.0.1/x"])
def test_a_redirect_stays_on_the_web(site: Site, to: str) -> None:
    """Other schemes are refused on the laptop and on the machine."""
    site.redirect_to = to
    with pytest.raises(OSError, match=r"redirects|not allowed|HTTP Error|answered 302"):
        UrlFiles().read(f"{site.url}/start/images.npy", 0, 4)
    source = open_source(f"{site.url}/start/images.npy")
    source.over.set()  # no retries
    with pytest.raises(CopyFailed) as failed:
        list(source.read(0, 4))
    assert "SECRET" not in str(failed.value)


@pytest.fixture
def encrypted(tmp_path: Path) -> Iterator[str]:
    """A server with a certificate in tmp_path/ca.pem, which nobody else knows."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(timezone.utc)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(1), now + timedelta(1))
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    pem = serialization.Encoding.PEM
    (tmp_path / "ca.pem").write_bytes(made.sign(key, hashes.SHA256()).public_bytes(pem))
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "key.pem").write_bytes(private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "ca.pem", tmp_path / "key.pem")

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "7")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("localhost", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://localhost:{server.server_port}/a.npy"
    server.shutdown()
    server.server_close()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps certificates of its own")
def test_a_python_without_certificates_takes_those_of_certifi(
    encrypted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As python.org's for macOS, until `Install Certificates.command` was run. The system's own come first."""
    (tmp_path / "empty").mkdir()
    for file, folder in (("no.pem", "no"), ("no.pem", "empty")):
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / file))
        monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / folder))
        with pytest.raises(WrongUse, match="CERTIFICATE_VERIFY_FAILED"):
            UrlFiles().size(encrypted)
        with monkeypatch.context() as known:
            known.setattr(certifi, "where", lambda: str(tmp_path / "ca.pem"))
            assert UrlFiles().size(encrypted) == 7
    monkeypatch.setenv("SSL_CERT_FILE", certifi.where())
    monkeypatch.setattr(certifi, "where", lambda: str(tmp_path / "ca.pem"))
    with pytest.raises(WrongUse, match="CERTIFICATE_VERIFY_FAILED"):
        UrlFiles().size(encrypted)


PUBLIC, OTHER = "https://93.184.215.14/a", "https://1.1.1.1/b?sig=SECRET"


@pytest.mark.parametrize(
    ("start", "to", "allowed"),
    [
        (PUBLIC, OTHER, True),
        ("http://93.184.215.14/a", OTHER, True),
        (PUBLIC, "http://1.1.1.1/b", False),
        (PUBLIC, "https://127.0.0.1/b", False),
        (PUBLIC, "https://10.0.0.1/b", False),
        (PUBLIC, "https://192.168.1.1/b", False),
        (PUBLIC, "http://169.254.169.254/latest/meta-data", False),
        (PUBLIC, "https://169.254.169.254/latest/meta-data", False),
        (PUBLIC, "https://[::1]/b", False),
        (PUBLIC, "https://[::ffff:10.0.0.1]/b", False),
        (PUBLIC, "https://[fe80::1]/b", False),
        (PUBLIC, "https://0.0.0.0/b", False),
        (PUBLIC, "https://2130706433/b", False),  # 127.0.0.1 as one number
        ("https://10.0.0.1/a", "https://10.0.0.2/b", True),
        ("http://127.0.0.1/a", "http://127.0.0.1/b", True),
        (PUBLIC, "ftp://1.1.1.1/b", False),
        (PUBLIC, "file:///etc/passwd", False),
    ],
)
def test_where_a_redirect_may_lead(start: str, to: str, allowed: bool) -> None:
    assert (why_not(start, to) is None) is allowed


PRIVATE = [
    "http://127.0.0.1:{port}/secret",
    "http://10.0.0.1/b",
    "http://169.254.169.254/latest/meta-data",
    "http://[::1]/b",
]


@pytest.mark.parametrize("to", PRIVATE)
def test_a_public_server_cannot_lead_to_a_private_one(site: Site, monkeypatch: pytest.MonkeyPatch, to: str) -> None:
    """Laptop and machine both refuse. The site is the HTTP proxy, so it also answers for the public host."""
    monkeypatch.setenv("http_proxy", site.url)
    monkeypatch.delenv("no_proxy", raising=False)
    site.redirect_to = to.format(port=site.url.rpartition(":")[2])
    public = "http://93.184.215.14/start/images.npy"
    with pytest.raises((OSError, WrongUse)) as failed:
        UrlFiles().read(public, 0, 4)
    assert "a private address" in str(failed.value)
    source = open_source(public)
    source.over.set()  # no retries
    with pytest.raises(CopyFailed, match="a private address"):
        list(source.read(0, 4))
    assert {path for path, _, _ in site.asked} == {"/start/images.npy"}  # nothing was asked of the private host


def test_a_public_server_may_lead_to_another(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the same redirect to a public host is followed."""
    monkeypatch.setenv("http_proxy", site.url)
    monkeypatch.delenv("no_proxy", raising=False)
    site.redirect_to = "http://1.1.1.1/images.npy?sig=SECRET"
    assert UrlFiles().read("http://93.184.215.14/start/images.npy", 0, 4) == BODY[:4]
    assert [path for path, _, _ in site.asked] == ["/start/images.npy", "/images.npy"]


def test_a_server_that_sends_more_than_was_asked_for_is_cut(site: Site) -> None:
    site.sends_all = True
    assert UrlFiles().read(f"{site.url}/images.npy?sig=SECRET", 3, 5) == BODY[3:8]


@pytest.mark.parametrize("text", ["file:///etc/passwd", "ftp://host/images.npy", "FILE:///x"])
def test_other_schemes_are_refused(text: str) -> None:
    with pytest.raises(WrongUse, match="https://"):
        sources.parse(text, Path("x"), local=False)


@pytest.mark.parametrize(
    "address",
    ["https://u:SECRET@h:8443/a/b.npy?X-Amz-Signature=SECRET#SECRET", "s3://SECRET:SECRET@h/a", "https://h/?SECRET",
     "https://u:SECRET@[::1/a?SECRET"],
)  # fmt: skip
def test_what_is_secret_in_an_address_is_never_shown(address: str) -> None:
    assert "SECRET" not in shown(address)
    assert "SECRET" not in hide(f"see {address}, or '{address}'")
    assert "SECRET" not in str(hide({"a": [address]}))
    assert "SECRET" not in WrongUse(f"{address} cannot be reached", evidence=[address]).message
    assert shown("https://h/a.npy") == "https://h/a.npy"


def test_no_message_of_a_failure_holds_the_signature(site: Site) -> None:
    """One server is unreachable, the other refuses."""
    for address in (f"{site.url}/x?sig=SECRET2", "http://u:SECRET@127.0.0.1:1/images.npy?sig=SECRET"):
        with pytest.raises((OSError, WrongUse)) as failed:
            UrlFiles().read(Url(address), 0, 4)
        assert "SECRET" not in str(hide(str(failed.value)))
        source = open_source(address)
        source.over.set()
        with pytest.raises((CopyFailed, WrongUse)) as failed:
            list(source.read(0, 4))
        assert "SECRET" not in str(failed.value)
