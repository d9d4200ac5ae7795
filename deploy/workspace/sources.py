"""Sources of images: a file on this laptop, a file on the machine, or a URL that serves ranges."""

from __future__ import annotations

import re
import urllib.error
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Protocol

from deploy.errors import WrongUse, bootstrap_command
from deploy.pod.base.addresses import open_address, request, shown
from deploy.shell import LocalShell
from deploy.shell.base import CHUNK_BYTES
from deploy.specs.settings import Settings

ON_THE_MACHINE = "machine:"
HERE, MACHINE, URL = "here", "machine", "url"
LIMIT_S = 30
NEVER = ("file:", "ftp:", "ftps:", "local:")  # fsspec would read these too


@dataclass(frozen=True)
class Url:
    """A URL with the path operations that are needed here."""

    text: str

    def __str__(self) -> str:
        return self.text

    @property
    def name(self) -> str:
        return self._path.rsplit("/", 1)[-1]

    @property
    def stem(self) -> str:
        return self.name.rsplit(".", 1)[0]

    @property
    def parent(self) -> Url:
        return self._with(self._path.rsplit("/", 1)[0])

    def __truediv__(self, name: str) -> Url:
        return self._with(f"{self._path}/{name}")

    def with_name(self, name: str) -> Url:
        return self.parent / name

    @property
    def normal(self) -> Url:
        """The URL without slashes at the end of its path, and without a fragment."""
        return self._with(self._path)

    @property
    def _path(self) -> str:
        """The URL without its query, which may hold a signature, and its fragment, which is never sent."""
        return re.split("[?#]", self.text)[0].rstrip("/")

    def _with(self, path: str) -> Url:
        _, mark, query = self.text.partition("#")[0].partition("?")
        return Url(f"{path}{mark}{query}")


Place = PurePath | Url


def no_s3(what: str) -> WrongUse:
    """The error for an address that needs a package. bootstrap.py installs it when it sees one in the command."""
    fix = bootstrap_command("train --data s3://BUCKET/images.npy", "s3")
    return WrongUse(
        f"{what} needs the package s3fs, which is not installed here: `{fix}` installs it, or give an https:// address"
    )


class Files(Protocol):
    """Readable files: every Shell, and UrlFiles."""

    def read(self, path: Any, offset: int = 0, limit: int | None = None) -> bytes: ...

    def size(self, path: Any) -> int | None: ...

    def ahead(self, beginnings: Mapping[Any, int]) -> Files:
        """Return the same files, with sizes and first bytes of some perhaps read already."""


@dataclass(frozen=True)
class Origin:
    """Where images are, and how to read them. `files` is None until the machine is provisioned."""

    where: str
    path: Place
    files: Files | None

    @property
    def is_known(self) -> bool:
        return self.files is not None


def parse(text: str, project: Path, *, local: bool) -> Origin:
    """Parse --data: `machine:/path` is on the machine, `https://…` a URL, everything else is local.

    Raises WrongUse for other addresses and paths.
    """
    if "://" in text:
        if text.lower().startswith(NEVER):
            raise WrongUse(
                f"--data {shown(text)} is not supported: give an https:// or s3:// address, or a path without file://"
            )
        if not re.match("[^:]+://[^/?#]", text):
            raise WrongUse(f"--data {text} names no host: give an address such as https://host/faces/images.npy")
        return Origin(URL, Url(text).normal, UrlFiles())
    if text.startswith(ON_THE_MACHINE):
        path = text[len(ON_THE_MACHINE) :]
        if not path.startswith("/") and not (local and path):
            raise WrongUse(
                f"--data {text} must be an absolute path on the machine, such as machine:/workspace/images.npy"
            )
        return Origin(HERE, project / path, LocalShell()) if local else Origin(MACHINE, PurePosixPath(path), None)
    return Origin(HERE, (project / Path(text).expanduser()).absolute(), LocalShell())


def named(settings: Settings, typed: str | None) -> Origin | None:
    """Where the images of --data or of the target's file are; None without either. Raises WrongUse, see `parse`."""
    text = typed or settings.target.data
    base = Path.cwd() if typed else settings.project  # a path in the target's file is the project's
    return parse(text, base, local=settings.is_local) if text else None


def configured(settings: Settings, origin: Origin | None, config: Mapping[str, Any]) -> tuple[Origin, bool]:
    """Where the images are, and whether they are the try-out's, which are used if nothing else is configured.

    `origin`: as `named` found it.
    """
    path = config["data"].get("binary_cache_path")
    if origin:
        return origin, False
    if path:
        there = not settings.is_local and str(path).startswith("/")
        return parse(f"{ON_THE_MACHINE}{path}" if there else path, settings.project, local=settings.is_local), False
    if settings.is_local:
        return parse("data/orl/images.npy", settings.project, local=True), True
    return Origin(MACHINE, settings.root / "data" / "orl" / "images.npy", None), True


class UrlFiles:
    """Read ranges over HTTP; other schemes through fsspec, if it is installed."""

    def read(self, path: Any, offset: int = 0, limit: int | None = None) -> bytes:
        """Read like a Shell: at most `limit` or CHUNK_BYTES, however much the server sends.

        Raises WrongUse without range requests, OSError otherwise.
        """
        limit = CHUNK_BYTES if limit is None else limit
        if limit == 0:
            return b""
        url = str(path)
        if not url.startswith(("http://", "https://")):
            return _read_by_fsspec(url, offset, limit)
        try:
            with open_address(request(url, {"Range": f"bytes={offset}-{offset + limit - 1}"}), LIMIT_S) as answer:
                if answer.status != 206 and (offset or limit < (1 << 20)):
                    raise WrongUse(f"{url} does not support range requests: give a server that does")
                told: bytes = answer.read(limit)
                return told
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (404, 403):
                raise FileNotFoundError(error.code, error.reason, url) from error
            if error.code == 416:
                return b""
            raise OSError(error.code, f"the server answered {error.code} {error.reason}", url) from error
        except urllib.error.URLError as error:
            raise OSError(None, f"the server cannot be reached: {error.reason}", url) from error

    def ahead(self, beginnings: Mapping[Any, int]) -> UrlFiles:  # noqa: ARG002 - a server answers one request at a time
        return self

    def size(self, path: Any) -> int | None:
        """Return the size of a file, None if there is none or it is not known. Raises WrongUse without a connection."""
        url = str(path)
        try:
            if not url.startswith(("http://", "https://")):
                return _size_by_fsspec(url)
            return _size(url)
        except urllib.error.HTTPError as error:  # the server answers, but has no such file
            error.close()
            return None
        except urllib.error.URLError as error:
            raise WrongUse(f"{url} cannot be reached from here: {error.reason}") from error
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _size(url: str) -> int:
    """Return the size by HEAD, or by a request for one byte: a signature may allow GET only."""
    try:
        asked = request(url, {})
        asked.method = "HEAD"
        with open_address(asked, LIMIT_S) as answer:
            return int(answer.headers["Content-Length"])
    except urllib.error.HTTPError as error:
        error.close()
        if error.code not in (403, 405, 501):
            raise
    with open_address(request(url, {"Range": "bytes=0-0"}), LIMIT_S) as answer:
        whole = answer.headers.get("Content-Range", "").rpartition("/")[2]
        return int(whole or answer.headers["Content-Length"])


def _read_by_fsspec(url: str, offset: int, limit: int) -> bytes:
    files = _fsspec(url)
    try:
        with files.open(url, "rb") as file:
            file.seek(offset)
            data: bytes = file.read(limit)
            return data
    except OSError:
        raise
    except Exception as error:  # each cloud has errors of its own, such as missing credentials
        raise _unread(url, error) from error


def _size_by_fsspec(url: str) -> int | None:
    files = _fsspec(url)
    try:
        return int(files.size(url))
    except FileNotFoundError:
        return None
    except Exception as error:
        raise _unread(url, error) from error


def _unread(url: str, error: Exception) -> WrongUse:
    words = " ".join(str(error).split()) or type(error).__name__
    return WrongUse(
        f"--data {shown(url)} cannot be read from here ({words}): check the address, and the credentials in the "
        "environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    )


def _fsspec(url: str) -> Any:
    scheme = url.split("://", 1)[0]
    try:
        import fsspec

        return fsspec.url_to_fs(url)[0]
    except ImportError as error:  # fsspec imports the package of a scheme at its first use
        if scheme.lower() in ("s3", "s3a"):
            raise no_s3(f"--data {shown(url)}") from error
        raise WrongUse(
            f"--data {shown(url)} needs the package fsspec and the package that it uses for {scheme}://, which are not "
            f"both installed here: install them with pip, or give an https:// address"
        ) from error
    except ValueError as error:
        raise WrongUse(
            f"--data {shown(url)}: there is no way to read {scheme}:// addresses: give an https:// or s3:// address"
        ) from error
