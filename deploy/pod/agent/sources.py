"""Read a data set's bytes on the machine: from a file, an http(s) address with range requests, or any fsspec address.

After a broken download, the range is requested again from the next byte, with growing pauses (backoff).
"""

from __future__ import annotations

import contextlib
import http.client
import importlib
import threading
import time
import urllib.error
from collections.abc import Iterator
from typing import Any

from deploy.pod.base.addresses import Forbidden, open_address, request, shown
from deploy.pod.base.retry import DOWNLOAD_PAUSES_S

CHUNK_BYTES = 1 << 20  # stays in the CPU cache from reading to hashing and writing
CLOUD_CHUNK_BYTES = 8 << 20  # one request of fsspec
SILENCE_S = 20
FINAL = {400, 401, 403, 404, 405, 410, 416}  # a retry would not help


class CopyFailed(Exception):
    """One sentence that a person can act on."""


class File:
    """A file on the machine."""

    readers = 4  # at least; a network volume is faster with several

    def __init__(self, path: str) -> None:
        self.path = path
        self.name = path

    def read(self, offset: int, length: int) -> Iterator[memoryview]:
        """Yield the bytes of a range in pieces, each valid until the next; fewer bytes if the file ends.

        Raises CopyFailed.
        """
        view = memoryview(bytearray(min(CHUNK_BYTES, length)))
        try:
            with open(self.path, "rb", buffering=0) as file:
                file.seek(offset)
                while length and (count := file.readinto(view[: min(len(view), length)])):
                    yield view[:count]
                    length -= count
        except OSError as error:
            raise CopyFailed(f"{self.path} cannot be read: {error.strerror or error}") from error


class Http:
    """An http(s) address whose server supports range requests."""

    readers = 8

    def __init__(self, address: str) -> None:
        self.address = address
        self.name = shown(address)
        self.over = threading.Event()

    def read(self, offset: int, length: int) -> Iterator[memoryview]:
        """Yield the bytes of a range in pieces, over as many connections as it takes. Raises CopyFailed."""
        failures = 0
        while length:
            before = length
            try:
                for piece in self._ask(offset, length):
                    yield piece
                    offset, length = offset + len(piece), length - len(piece)
            except (OSError, http.client.HTTPException, ValueError) as error:  # URLError is an OSError
                words = self._words(error)
                failures = 1 if length < before else failures + 1
                if failures > len(DOWNLOAD_PAUSES_S):
                    raise CopyFailed(f"{self.name} cannot be read from byte {offset}: {words}") from error
                if self.over.wait(DOWNLOAD_PAUSES_S[failures - 1]):
                    raise CopyFailed(f"{self.name}: broken off") from error
                continue
            if length:
                return  # the file ends here; the caller counts the bytes

    def _ask(self, offset: int, length: int) -> Iterator[memoryview]:
        wanted = {"Range": f"bytes={offset}-{offset + length - 1}", "Accept-Encoding": "identity"}
        with open_address(request(self.address, wanted), SILENCE_S) as answer:
            told = str(answer.headers.get("Content-Range", ""))
            if answer.status != 206 or not told.startswith(f"bytes {offset}-"):
                raise CopyFailed(f"{self.name} does not support range requests: give another address, or a path")
            left = min(length, int(answer.headers.get("Content-Length", length)))
            while left:
                data = answer.read1(min(CHUNK_BYTES, left))
                if not data:
                    raise http.client.IncompleteRead(b"", left)
                yield memoryview(data)
                left -= len(data)

    def _words(self, error: Exception) -> str:
        """Return the error as a few words, after a Retry-After pause. Raises CopyFailed if a retry would not help."""
        if isinstance(error, Forbidden):
            raise CopyFailed(f"{self.name}: {error.reason}") from error
        if isinstance(error, urllib.error.HTTPError):
            with contextlib.suppress(OSError):
                error.close()
            if error.code in FINAL:
                raise CopyFailed(f"{self.name} answers {error.code} ({error.reason})") from error
            wait = error.headers.get("Retry-After", "") if error.headers else ""
            if wait.isdigit():
                time.sleep(min(int(wait), 60))
            return f"{error.code} {error.reason}"
        reason = getattr(error, "reason", None) or error
        return str(reason) or type(error).__name__


class Cloud:
    """Any address that fsspec opens, such as s3://; uses fsspec's own settings and credentials."""

    readers = 8

    def __init__(self, address: str) -> None:
        self.name = shown(address)
        scheme = address.split("://")[0]
        try:
            self.system, self.path = importlib.import_module("fsspec.core").url_to_fs(address)
        except (ImportError, ValueError) as error:
            raise CopyFailed(
                f"{scheme}:// needs the Python package fsspec and its {scheme} extra on the machine "
                f"({error}): install them there, or give an https:// address"
            ) from error

    def read(self, offset: int, length: int) -> Iterator[memoryview]:
        while length:
            data = self._range(offset, offset + min(CLOUD_CHUNK_BYTES, length))
            if not data:
                return
            yield memoryview(data)
            offset, length = offset + len(data), length - len(data)

    def _range(self, start: int, end: int) -> bytes:
        for pause_s in (*DOWNLOAD_PAUSES_S, None):
            try:
                data: bytes = self.system.cat_file(self.path, start=start, end=end)
                return data
            except (FileNotFoundError, PermissionError, NotImplementedError) as error:
                raise CopyFailed(f"{self.name} cannot be read: {error}") from error
            except Exception as error:  # each cloud has errors of its own
                if pause_s is None:
                    raise CopyFailed(f"{self.name} cannot be read from byte {start}: {error}") from error
            time.sleep(pause_s)
        raise AssertionError


def open_source(source: str) -> Any:
    """Return the source for a path or address. Raises CopyFailed if the machine lacks the package for its scheme."""
    if "://" not in source:
        return File(source)
    return Http(source) if source.lower().startswith(("http://", "https://")) else Cloud(source)
