"""Check the setup of this computer and of a target's machine, and suggest fixes."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import PureWindowsPath

from deploy.errors import DeployError, bootstrap_command, command
from deploy.runs.session import Reach
from deploy.shell import LocalShell, Shell
from deploy.shell.native import GET_SSH
from deploy.specs.estimate import plural
from deploy.specs.machine import Machine
from deploy.specs.settings import Settings, Target
from deploy.specs.trial import Finding
from deploy.steps.resolve import app_config
from deploy.workspace import devices
from deploy.workspace.code import look
from deploy.workspace.devices import Devices
from deploy.workspace.environment import settle

MIN_FREE_GIB = 5
# The longest path in .venv has 195 characters on Windows: licences in torch 2.13. With a separator and the final NUL
# of Windows' limit, 63 are left for the folder of the project.
LONGEST_PROJECT = 63
SHORT_FOLDER = r"C:\src\face"
MISSING = {
    "git": ("problem", "not installed on the machine: code cannot be copied to it", "apt-get install git, there"),
    "tmux": ("warning", "not installed on the machine: `attach` cannot work", "apt-get install tmux, there"),
}
APP_PACKAGES = ("torch", "numpy", "scipy", "faiss")


def examine(at: Reach) -> list[Finding]:
    """Check this computer and, for a remote target, its provider and its machine."""
    settings = at.settings
    of_laptop = [_python, _config, _git, _disk, _terminal]
    if sys.platform == "win32":
        of_laptop.append(_folder)
    if settings.is_local:
        return [check(settings) for check in (*of_laptop[:1], _packages, *of_laptop[1:3], _tmux, _gpu, *of_laptop[3:])]
    return [*(check(settings) for check in (*of_laptop, _ssh)), *_account(at), *machine(at)]


def _ssh(_: Settings) -> Finding:
    if LocalShell().which("ssh"):
        return Finding("ssh", "ok", "installed")
    lacks = "not installed: `attach`, `ssh` and `exec` cannot work, and large files are slow"
    return Finding("ssh", "warning", lacks, GET_SSH)


def _account(at: Reach) -> list[Finding]:
    """Report what the provider's account allows, if machines are rented there. `machine` reports its errors."""
    try:
        trial = at.provider.trial()
        return trial.account() if trial else []
    except DeployError:
        return []


def machine(at: Reach) -> list[Finding]:
    """Check the provider, and the machine if it exists. Provisions nothing."""
    target, provider = at.settings.target.name, at.settings.target.provider
    file = at.settings.where
    try:
        found = at.machine_of_target()
    except DeployError as error:
        fix = error.next_command or f"check the account and its keys, and {file}"
        return [Finding(f"provider {provider}", "problem", error.message, fix)]
    if found is None:
        create = f"no machine yet; create one with: {command(f'deploy --on {target}')}"
        return [Finding("machine", "ok", create), *_image(at)]
    shell = at.shell(found)
    try:
        found = settle(found, shell, at.settings.project)
        hardware = shell.hardware()
        gpu = _gpu_there(at.settings, found, shell)
        missing = [program for program in ("git", "tmux") if shell.which(program) is None]
        free_gib = shell.free_bytes(at.settings.stage_to or found.root) / (1 << 30)
    except DeployError as error:
        wrong = at.settings.target.options.silent_fix(target, file)
        return [Finding("machine", "problem", error.message, error.next_command or wrong)]
    findings = [Finding("machine", "ok", f"{found.name}: {hardware.cores} cores"), gpu]
    findings += [Finding(name, *MISSING[name]) for name in missing]
    where = at.settings.stage_to or found.root
    room = None if free_gib > 1 else f"remove files there, or set another root in {file}"
    return [*findings, Finding("room", "warning" if room else "ok", f"{free_gib:.1f} GiB free in {where}", room)]


def _image(at: Reach) -> list[Finding]:
    """Report the image that the machine would be made from, if it is made from one."""
    try:
        image = at.provider.image()
    except DeployError as error:
        return [
            Finding("image", "problem", error.message, error.next_command or f"check image: in {at.settings.where}")
        ]
    if image is None:
        return []
    if image.name:
        return [Finding("image", "ok", image.name)]
    build = command(f"build --on {at.settings.target.name}")
    return [Finding("image", "problem", "the image of this project is not built yet", build)]


def _python(_: Settings) -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", "ok", f"{version} ({sys.executable})")


def _packages(_: Settings) -> Finding:
    missing = [name for name in APP_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        return Finding("training packages", "problem", f"missing: {', '.join(missing)}", bootstrap_command())
    return Finding("training packages", "ok", "all there")


def _config(settings: Settings) -> Finding:
    try:
        app_config(settings.project, [])
    except DeployError as error:
        return Finding("configuration", "problem", error.message, error.next_command or "python -m app.config")
    return Finding("configuration", "ok", "conf/ is valid")


def _git(settings: Settings) -> Finding:
    if LocalShell().which("git") is None:
        return Finding("git", "warning", "not installed: code is copied; runs cannot record a commit", "install git")
    try:
        facts = look(settings.project)
    except DeployError as error:
        return Finding("git", "problem", error.message, error.next_command or "git status")
    if facts.kind == "copy":
        return Finding("git", "warning", "this folder is not a repository: runs cannot record a commit", "git init")
    return Finding(
        "git", "ok", f"commit {(facts.commit or 'none yet')[:12]}, {plural(facts.changed_files, 'changed file')}"
    )


def _tmux(_: Settings) -> Finding:
    if LocalShell().which("tmux"):
        return Finding("tmux", "ok", "installed")
    fix = "apt-get install tmux, or brew install tmux; nothing to do on Windows"
    return Finding("tmux", "warning", "not installed: jobs run without a terminal, `attach` cannot work", fix)


def _gpu(settings: Settings) -> Finding:
    found = devices.ask(LocalShell(), sys.executable, settings.project)
    return gpu_finding(found, settings.target, is_here=True)


def _gpu_there(settings: Settings, machine: Machine, shell: Shell) -> Finding:
    """Check the GPUs with the Python that trains there, if it is installed already."""
    if shell.which(machine.python) is None:
        return Finding("GPU", "ok", "checked when deploy or train makes the training environment")
    return gpu_finding(devices.ask(shell, machine.python, machine.root), settings.target, promised=machine.gpus)


def gpu_finding(found: Devices, target: Target, *, promised: int | None = None, is_here: bool = False) -> Finding:
    """Report the device that training will use, and why not a better one."""
    why = devices.fault(found, target.device, promised=promised, is_here=is_here)
    if why:
        return Finding("GPU", "problem", why, devices.advice(target.name))
    if target.device == devices.CPU:
        return Finding("GPU", "ok", "not used: device: cpu in the target's file")
    if not found.gpus:
        fix = "not needed for the try-out; for more, use a machine with an NVIDIA GPU and its driver"
        if found.listed and found.torch and not found.cuda:
            fix = "install PyTorch's build for CUDA, as docs/machines.md, section Windows, describes"
        reason = f" ({found.why})" if found.why else ""
        count = f"{plural(found.listed, 'GPU is', 'GPUs are')} not used" if found.listed else "none found"
        return Finding("GPU", "warning", f"{count}{reason}: training uses the CPU", fix)
    names = ", ".join(f"{each.name} {each.memory_bytes / (1 << 30):.0f} GiB" for each in found.gpus)
    return Finding("GPU", "ok", f"{plural(len(found.gpus), 'GPU')}: {names} ({found.versions})")


def _disk(settings: Settings) -> Finding:
    place = settings.root if settings.is_local else settings.project
    free_gib = LocalShell().free_bytes(place) / (1 << 30)
    if free_gib < MIN_FREE_GIB:
        fix = f"remove old runs, or set another root in {settings.where}"
        return Finding("disk", "warning", f"{free_gib:.1f} GiB free in {place}", fix)
    return Finding("disk", "ok", f"{free_gib:.0f} GiB free in {place}")


def _folder(settings: Settings) -> Finding:
    synced = [os.environ.get(name, "") for name in ("OneDrive", "OneDriveCommercial", "OneDriveConsumer")]
    return folder_finding(PureWindowsPath(settings.project), synced, long_paths=_allows_long_paths())


def folder_finding(project: PureWindowsPath, synced: Sequence[str], *, long_paths: bool) -> Finding:
    """PURE: report a folder of Windows that is synchronised, or too long for the files below it.

    `synced`: folders that OneDrive synchronises; empty texts count for nothing.
    """
    for text in filter(None, synced):
        if project.is_relative_to(PureWindowsPath(text)):
            words = f"{project} is in OneDrive, which locks files and uploads .venv and checkpoints"
            return Finding("folder", "warning", words, f"move the project, for example to {SHORT_FOLDER}")
    length = len(str(project))
    if length > LONGEST_PROJECT and not long_paths:
        words = f"its path has {length} characters; above {LONGEST_PROJECT}, files of torch exceed 260"
        return Finding(
            "folder", "warning", words, f"move it, for example to {SHORT_FOLDER}, or enable LongPathsEnabled"
        )
    return Finding("folder", "ok", str(project))


def _allows_long_paths() -> bool:
    """Whether Windows is set up for paths over 260 characters."""
    if sys.platform != "win32":
        return True
    import winreg

    try:
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"SYSTEM\CurrentControlSet\Control\FileSystem") as key:
            return bool(winreg.QueryValueEx(key, "LongPathsEnabled")[0])
    except OSError:
        return False


def _terminal(_: Settings) -> Finding:
    width = shutil.get_terminal_size().columns
    encoding = (sys.stdout.encoding or "ascii").lower()
    if not encoding.startswith("utf"):
        return Finding("terminal", "warning", f"{encoding}: tables are drawn in ASCII", "set PYTHONUTF8=1")
    return Finding("terminal", "ok", f"{encoding}, {width} columns")
