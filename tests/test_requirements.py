"""The lists with hashes contain what pyproject.toml requires, in the versions of constraints.txt, completely."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from types import ModuleType

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.scripts import load_script

PROJECT = Path(__file__).parents[1]
FOLDER = PROJECT / "requirements"
LISTS = ("app", "build", "cuda", "dev", "gpu", "laptop", "pack", "s3", "torch", "ui", "wandb")
BLOCK = re.compile(
    r"([a-z0-9-]+)==([^\s;]+)(?: ; ([^\\\n]+?))? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE
)


@pytest.fixture(scope="module")
def update() -> ModuleType:
    """The script that makes the lists."""
    return load_script(FOLDER / "update.py")


def blocks(name: str) -> list[tuple[str, str, str]]:
    """Name, version and marker of each package in a list. Fails on any line outside a package with hashes."""
    text = (FOLDER / f"{name}.txt").read_text(encoding="utf-8")
    assert BLOCK.sub("", text).strip().startswith("#"), name
    assert len(BLOCK.sub("", text).strip().splitlines()) == 1, BLOCK.sub("", text)
    return [found[:3] for found in BLOCK.findall(text)]


def pinned() -> set[tuple[str, str]]:
    lines = (PROJECT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {tuple(re.split("==| ;", line)[:2]) for line in lines if not line.startswith("#")}  # type: ignore[misc]


def test_every_package_has_its_hashes_in_a_list() -> None:
    """The lists have all pins of constraints.txt, including torch and the libraries of its build for CUDA."""
    assert {(package, version) for name in LISTS for package, version, _ in blocks(name)} == pinned()


def test_each_list_begins_with_what_pyproject_asks_for(update: ModuleType) -> None:
    wanted = update.wanted((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(wanted) == set(LISTS)
    assert {"fabric", "runpod"} <= set(wanted["laptop"])
    assert "torch==2.13.0" in wanted["app"]
    for name, asked in wanted.items():
        if name == "cuda":  # required by torch
            continue
        names = {canonicalize_name(Requirement(each).name) for each in asked}
        assert names - {package for package, _, _ in blocks(name)} == ({"torch"} if name == "app" else set())


@pytest.mark.parametrize("name", ["app", "dev", "laptop", "pack", "s3", "ui", "wandb"])
def test_each_list_is_complete(name: str, update: ModuleType) -> None:
    """The metadata of the installed packages shows it: pip installs a list without resolving dependencies."""
    here = {package: version for package, version, marker in blocks(name) if not marker or Marker(marker).evaluate()}
    for package, version in here.items():
        found = importlib.metadata.distribution(package)
        assert found.version == version, package
        for text in found.requires or []:
            needed = Requirement(text)
            # Skip extras: those that another package needs are in that package's requirements.
            if needed.marker and not needed.marker.evaluate({"extra": ""}):
                continue
            other = canonicalize_name(needed.name)
            assert other in here or update.CUDA.fullmatch(other) or other == "torch", f"{package} needs {other}"
            assert other not in here or needed.specifier.contains(here[other], prereleases=True), (package, text)


def test_what_torch_needs_is_listed() -> None:
    listed = {package for name in ("app", "cuda") for package, _, _ in blocks(name)}
    for text in importlib.metadata.distribution("torch").requires or []:
        needed = Requirement(text)
        if needed.marker is None or needed.marker.evaluate({"extra": ""}):
            other = canonicalize_name(needed.name)
            assert other in listed, other


def test_libraries_for_cuda_are_listed_for_linux_alone(update: ModuleType) -> None:
    """This holds for each supported Python: for some of them, torch's build for CUDA requires other versions."""
    assert {package for package, _, _ in blocks("torch")} == {"torch"}
    for python in ("3.10", "3.11", "3.12", "3.13", "3.14"):
        machine = {"sys_platform": "linux", "platform_machine": "x86_64", "python_version": python}
        environment = {**machine, "python_full_version": f"{python}.1"}
        here = [package for package, _, marker in blocks("cuda") if Marker(marker).evaluate(environment)]
        assert len(here) == len(set(here)) > 15
        assert {"triton", "nvidia-cudnn-cu13", "nvidia-cublas"} < set(here)
        assert all(update.CUDA.fullmatch(package) for package in here)
    assert not any(Marker(marker).evaluate({"sys_platform": "win32"}) for _, _, marker in blocks("cuda"))


@pytest.mark.parametrize("place", ["bootstrap.py", "deploy/pod/agent/environment.py", "Dockerfile"])
def test_whoever_installs_lets_pip_check_hashes(place: str) -> None:
    text = (PROJECT / place).read_text(encoding="utf-8")
    assert "--require-hashes" in text
    for name in ("app", "build", "cuda", "s3", "torch", "wandb"):
        assert re.search(rf"\b{name}\b", text)
