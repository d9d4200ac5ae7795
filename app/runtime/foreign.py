"""Recognise files that users mistake for ours, by content, so that the error message names what they are."""

from __future__ import annotations

import contextlib
import zipfile
from pathlib import Path

RECORDIO = bytes.fromhex("0a23d7ce")  # 0xced7230a, the magic number of each record of a .rec
HEAD_BYTES = 512
TABLE_BYTES = 100 << 20  # most that the table of contents of a safetensors file may take


def what_it_is(path: Path, *, array_wanted: bool = False) -> str | None:
    """What a file is and what to do with it, as the end of a sentence after its name; None if it is unknown.

    With `array_wanted` a NumPy array, complete or truncated, counts as unknown.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return None
    start = head.lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself; get the file with git lfs pull"
    if start.startswith((b"<!doctype html", b"<html")):
        return "is a web page that was saved instead of the file; download the file again"
    if head.startswith(RECORDIO):
        return "is a RecordIO file; convert it once: python -m app.prepare source=rec path=FOLDER out=images.npy"
    if head.startswith(b"\x93NUMPY") and not array_wanted:
        return "is an array of NumPy, not weights; give a .pt file"
    if is_safetensors(head):
        return "is a damaged safetensors file; copy or download it again"
    if path.suffix == ".onnx":
        return "is an ONNX file, which holds a graph; give the .pt file it was made from"
    return _archive(path)


def is_safetensors(head: bytes) -> bool:
    """Whether a file that begins with these bytes (9 or more) is a safetensors file."""
    return head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") < TABLE_BYTES


def _archive(path: Path) -> str | None:
    """Recognise zip archives with code: TorchScript, exported programs, and pickles of whole Python objects."""
    with contextlib.suppress(zipfile.BadZipFile, OSError):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any("/code/" in name for name in names):
            return "is a TorchScript program; save its weights with torch.save(torch.jit.load(…).state_dict(), …)"
        if any(name.rpartition("/")[2].startswith("serialized_exported_program") for name in names):
            return "is a program of torch.export; save its weights with torch.save(torch.export.load(…).state_dict, …)"
        if objects := _objects(path):
            return (
                f"holds Python objects ({objects}), which could run code when they are loaded; save its tensors alone, "
                "with torch.save(model.state_dict(), …)"
            )
    return None


def _objects(path: Path) -> str:
    """Name the Python classes that a torch file needs, without loading them; empty if it needs none."""
    import torch  # late: app.prepare uses this module and answers without torch

    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # the unpickler raises anything on damaged bytes
        return ""
    return ", ".join(sorted(found)[:3])
