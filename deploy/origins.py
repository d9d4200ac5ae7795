"""Where images come from: a file on this laptop, a file on the machine, or an address that serves ranges."""

from __future__ import annotations

import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Protocol

from deploy.errors import WrongUse
from deploy.shell import LocalShell

ON_THE_MACHINE = "machine:"
HERE, MACHINE, URL = "here", "machine", "url"
LIMIT_S = 30


@dataclass(frozen=True)
class Url:
    """An address, handled as a path as far as that goes."""

    text: str

    def __str__(self) -> str:
        return self.text

    @property
    def name(self) -> str:
        return self.text.rsplit("/", 1)[-1]

    @property
    def stem(self) -> str:
        return self.name.rsplit(".", 1)[0]

    @property
    def parent(self) -> Url:
        return Url(self.text.rsplit("/", 1)[0])

    def __truediv__(self, name: str) -> Url:
        return Url(f"{self.text}/{name}")

    def with_name(self, name: str) -> Url:
        return Url(f"{self.parent}/{name}")


Place = PurePath | Url


class Files(Protocol):
    """What can be read: every Shell, and UrlFiles."""

    def read(self, path: Any, offset: int = 0, limit: int | None = None) -> bytes: ...

    def size(self, path: Any) -> int | None: ...


@dataclass(frozen=True)
class Origin:
    """`where` the images are, and the way to read them there; None while that machine is still to be had."""

    where: str
    path: Place
    files: Files | None

    @property
    def is_known(self) -> bool:
        return self.files is not None


def parse(text: str, project: Path, *, local: bool) -> Origin:
    """`machine:/path` lies on the machine, `https://…` at an address, everything else here."""
    if "://" in text:
        return Origin(URL, Url(text.rstrip("/")), UrlFiles())
    if text.startswith(ON_THE_MACHINE):
        path = text[len(ON_THE_MACHINE) :]
        if not path.startswith("/") and not (local and path):
            raise WrongUse(f"--data {text} must be a whole path on the machine, such as machine:/workspace/images.npy")
        return Origin(HERE, project / path, LocalShell()) if local else Origin(MACHINE, PurePosixPath(path), None)
    return Origin(HERE, (project / Path(text).expanduser()).absolute(), LocalShell())


class UrlFiles:
    """Ranges over HTTP; other schemes through fsspec, where that is installed."""

    def read(self, path: Any, offset: int = 0, limit: int | None = None) -> bytes:
        if limit == 0:
            return b""
        url = str(path)
        if not url.startswith(("http://", "https://")):
            with _fsspec(url).open(url, "rb") as file:
                file.seek(offset)
                data: bytes = file.read(-1 if limit is None else limit)
                return data
        end = "" if limit is None else offset + limit - 1
        request = urllib.request.Request(url, headers={"Range": f"bytes={offset}-{end}"})  # noqa: S310 - checked above
        try:
            with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:  # noqa: S310
                if answer.status == 206:
                    ranged: bytes = answer.read()
                    return ranged
                if offset or (limit is not None and limit < (1 << 20)):
                    raise WrongUse(f"{url} does not serve ranges: images are read in parts; give a server that does")
                whole: bytes = answer.read()
                return whole
        except urllib.error.HTTPError as error:
            if error.code in (404, 403):
                raise FileNotFoundError(error.code, error.reason, url) from error
            if error.code == 416:
                return b""
            raise OSError(error.code, f"the server answered {error.code} {error.reason}", url) from error
        except urllib.error.URLError as error:
            raise OSError(None, f"the server cannot be reached: {error.reason}", url) from error

    def size(self, path: Any) -> int | None:
        url = str(path)
        try:
            if not url.startswith(("http://", "https://")):
                return int(_fsspec(url).size(url))
            request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - checked above
            with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:  # noqa: S310
                return int(answer.headers["Content-Length"])
        except urllib.error.HTTPError:  # the server is there, the file is not
            return None
        except urllib.error.URLError as error:
            raise WrongUse(f"{url} cannot be reached from here: {error.reason}") from error
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _fsspec(url: str) -> Any:
    try:
        import fsspec
    except ImportError as error:
        scheme = url.split("://", 1)[0]
        raise WrongUse(
            f"{url} needs the package fsspec (for s3, s3fs too), which is not installed here: pip install fsspec s3fs, "
            f"or give an https:// address instead of {scheme}://"
        ) from error
    return fsspec.url_to_fs(url)[0]
