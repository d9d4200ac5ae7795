"""What is wrong with the set-up on this computer, each finding with its fix."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass

from deploy.code import look
from deploy.errors import BOOTSTRAP, DeployError
from deploy.facts import app_config
from deploy.settings import Settings
from deploy.shell import LocalShell

MIN_FREE_GIB = 5
APP_PACKAGES = ("torch", "numpy", "scipy", "faiss", "wandb")


@dataclass(frozen=True)
class Finding:
    """`level`: ok, warning (works, with less) or problem (train will fail)."""

    what: str
    level: str
    found: str
    fix: str | None = None


def examine(settings: Settings) -> list[Finding]:
    checks: list[Callable[[Settings], Finding]] = [
        _python,
        _packages,
        _config,
        _git,
        _tmux,
        _gpu,
        _disk,
        _terminal,
    ]
    return [check(settings) for check in checks]


def _python(_: Settings) -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", "ok", f"{version} ({sys.executable})")


def _packages(_: Settings) -> Finding:
    missing = [name for name in APP_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        return Finding("training packages", "problem", f"missing: {', '.join(missing)}", BOOTSTRAP)
    return Finding("training packages", "ok", "all there")


def _config(settings: Settings) -> Finding:
    try:
        app_config(settings.project, [])
    except DeployError as error:
        return Finding("configuration", "problem", error.message, error.next_command or "python -m app.config")
    return Finding("configuration", "ok", "conf/ is understood")


def _git(settings: Settings) -> Finding:
    if LocalShell().which("git") is None:
        return Finding("git", "warning", "not installed: code is copied, runs cannot name a commit", "install git")
    try:
        facts = look(settings.project)
    except DeployError as error:
        return Finding("git", "problem", error.message, error.next_command)
    if facts.kind == "copy":
        return Finding("git", "warning", "this folder is no repository: runs cannot name a commit", "git init")
    return Finding("git", "ok", f"commit {(facts.commit or 'none yet')[:12]}, {facts.changed_files} changed files")


def _tmux(_: Settings) -> Finding:
    if LocalShell().which("tmux"):
        return Finding("tmux", "ok", "installed")
    fix = "apt-get install tmux, or brew install tmux; nothing to do on Windows"
    return Finding("tmux", "warning", "not installed: jobs run without a terminal, `attach` cannot work", fix)


def _gpu(_: Settings) -> Finding:
    hardware = LocalShell().hardware()
    if hardware.gpus == 0:
        fix = "nothing for the try-out; for more, use a machine on which `nvidia-smi -L` lists a GPU"
        return Finding("GPU", "warning", f"none found: training uses {hardware.cores} CPU cores", fix)
    return Finding("GPU", "ok", f"{hardware.gpus} GPUs")


def _disk(settings: Settings) -> Finding:
    free_gib = LocalShell().free_bytes(settings.root) / (1 << 30)
    if free_gib < MIN_FREE_GIB:
        fix = f"remove old runs, or set another root in conf/deploy/{settings.target.name}.yaml"
        return Finding("disk", "warning", f"{free_gib:.1f} GiB free in {settings.root}", fix)
    return Finding("disk", "ok", f"{free_gib:.0f} GiB free in {settings.root}")


def _terminal(_: Settings) -> Finding:
    width = shutil.get_terminal_size().columns
    encoding = (sys.stdout.encoding or "ascii").lower()
    if not encoding.startswith("utf"):
        return Finding("terminal", "warning", f"{encoding}: tables are drawn in ASCII", "set PYTHONUTF8=1")
    return Finding("terminal", "ok", f"{encoding}, {width} columns")
