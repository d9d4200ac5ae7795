"""Find credentials in the code folder, by file name and by content, before the code is uploaded."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch, translate
from functools import cache
from pathlib import Path, PurePosixPath

from deploy.errors import WrongUse
from deploy.pod.base.redact import SHORTEST

FILE_BYTES = 1 << 20  # read from the start of each file; a credential file is small
ALL_BYTES = 128 << 20  # read from all files together: a check before every run must stay fast
NAMES = (
    ".env",
    ".env.*",
    "*.env",
    ".envrc",
    ".netrc",
    "_netrc",
    ".pgpass",
    ".htpasswd",
    ".dockercfg",
    "kubeconfig",
    ".pypirc",
    ".npmrc",
    ".git-credentials",
    "credentials",
    "credentials.*",
    "id_rsa",
    "id_dsa",
    "id_ecdsa",
    "id_ecdsa_sk",
    "id_ed25519",
    "id_ed25519_sk",
    "*.pem",
    "*.p12",
    "*.pfx",
    "*.key",
    "*.ppk",
    "*.kdbx",
    "*.jks",
)
HARMLESS = (".env.example", ".env.sample", ".env.template")
# Description, strings of which one always occurs (fast to find), and the full pattern.
CONTENTS: tuple[tuple[str, tuple[bytes, ...], bytes], ...] = (
    (
        "a private key",
        (b"PRIVATE KEY-----",),
        rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----(?:\s|\\[nr])+(?:[A-Za-z-]+: [^\n]+\s+)*[A-Za-z0-9+/]{40}",
    ),
    ("an AWS access key", (b"AKIA", b"ASIA"), rb"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    ("a GitLab token", (b"glpat-",), rb"\bglpat-[A-Za-z0-9_-]{20,}"),
    ("a Google API key", (b"AIza",), rb"\bAIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])"),
    ("a Slack token", (b"xox",), rb"\bxox[abeprs]-[A-Za-z0-9-]{20,}"),
    (
        "a GitHub token",
        (b"ghp_", b"gho_", b"ghu_", b"ghs_", b"ghr_", b"github_pat_"),
        rb"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{60,})",
    ),
    ("a Hugging Face token", (b"hf_",), rb"\bhf_[A-Za-z0-9]{30,}\b"),
    ("an API key that begins with sk-", (b"sk-",), rb"\bsk-[A-Za-z0-9_-]{32,}"),
    ("a RunPod API key", (b"rpa_",), rb"\brpa_[A-Za-z0-9]{36,}"),
    ("a W&B API key", (b"wandb.ai",), rb"wandb\.ai\s[^\n]*?\n?\s*password\s+[0-9a-f]{40}\b"),
    ("a W&B API key", (b"WANDB_API_KEY",), rb"WANDB_API_KEY[\"']?\s*[=:]\s*[\"']?[0-9a-f]{40}\b"),
)
NAME = re.compile("|".join(map(translate, NAMES)))  # of a file name in lower case
PATTERNS = [(what, words, re.compile(pattern)) for what, words, pattern in CONTENTS]


@dataclass(frozen=True)
class Leak:
    """A file that seems to hold a credential, and why. `certain`: it holds the value of a secret of this computer."""

    file: str
    why: str
    certain: bool = False


def find(project: Path, files: Iterable[str], secrets: Mapping[str, str]) -> list[Leak]:
    """Return the files that look like credentials or hold one. `files`: names with /, relative to the project.

    `secrets`: names and values of this computer's environment that a run may get.
    """
    left = ALL_BYTES
    found = []
    values = tuple(sorted(secrets.items()))
    for name in files:
        path = os.path.join(project, name)
        size, leak = _judged(path, name, _state(path), min(FILE_BYTES, left), values)
        left -= size
        if leak:
            found.append(leak)
    return found


@cache  # a command checks the code up to three times: before a run is recorded, before money is spent, at the upload
def _judged(
    path: str, name: str, state: object, limit: int, secrets: tuple[tuple[str, str], ...]
) -> tuple[int, Leak | None]:
    """Return the bytes that were read, and the verdict. `state`: changes when the file does; None if it is no file."""
    content = b"" if state is None else _beginning(path, limit)
    return len(content), judge(name, content, dict(secrets))


def _state(path: str) -> object:
    """Return None for all but a plain file: a symbolic link is uploaded as a link, so its target is not read."""
    try:
        about = os.lstat(path)
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(about.st_mode):
        return None
    return about.st_mode, about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino


def judge(name: str, content: bytes, secrets: Mapping[str, str]) -> Leak | None:
    content = content.replace(b"\0", b"")  # UTF-16, as `>` in Windows PowerShell writes it
    for variable, value in secrets.items():
        if len(value) >= SHORTEST and value.encode() in content:
            return Leak(name, f"holds the value of {variable}", certain=True)
    for what, words, pattern in PATTERNS:
        if any(word in content for word in words) and pattern.search(content):
            return Leak(name, f"holds {what}")
    base = PurePosixPath(name).name.lower()
    if base not in HARMLESS and NAME.match(base):
        return Leak(name, "has the name of a file with credentials")
    return None


def refuse(leaks: Iterable[Leak], tracked: set[str], allowed: Iterable[str]) -> tuple[str, ...]:
    """Return the tracked files to warn about. Untracked files, and files with a value of `secrets:`, are refused.

    Raises WrongUse with the file, the reason, and how to allow it.
    """
    patterns = tuple(allowed)
    warned = []
    for leak in leaks:
        if any(fnmatch(leak.file, pattern) for pattern in patterns):
            continue
        if leak.file in tracked and not leak.certain:
            warned.append(leak.file)
            continue
        way = "remove the value" if leak.file in tracked else "list it in .gitignore"
        raise WrongUse(
            f"{leak.file} {leak.why}, and would be uploaded with the code: {way}, or, to upload it anyway, list it "
            f"in the target's file: allow_files: [{leak.file}]"
        )
    return tuple(warned)


def _beginning(path: str, limit: int) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(limit)
    except OSError:
        return b""
