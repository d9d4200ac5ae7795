"""Test bootstrap.py in a tiny project: real virtual environments and a real pip, offline, with packages built here.

The tiny project has the same structure as ours (the laptop half, the extras app and dev). Its `invoke` prints how it
was called. A file named `hold` pauses its fake setuptools in the middle of an installation.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import venv
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.load import under_load

BOOTSTRAP = Path(__file__).parents[1] / "bootstrap.py"
HOSTILE_NAME = "it's 100% Übel & 東京 $HOME;x" + ('"q"' if os.name != "nt" else "")
POSIX_ONLY = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")

PYPROJECT = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "source"
version = "1"
"""
CONSTRAINTS = "torch==1\n"
# The pins in each list. `source` has no wheel; the fake setuptools builds it.
LISTS = {
    "build": ["setuptools==999"],
    "laptop": ["invoke==1", "source==1"],
    "app": ["needed==1"],
    "torch": ["torch==1"],
    "cuda": ["nvidiax==1"],
    "dev": ["pytest==1", "needed==1"],
    "s3": ["needed==1"],
    "wandb": ["needed==1"],
}

BACKEND = """\
import os, time, zipfile
def build_wheel(folder, config_settings=None, metadata_directory=None):
    hold = os.environ["HOLD"]
    if os.path.exists(hold):
        open(hold + ".reached", "w").close()
    while os.path.exists(hold):
        time.sleep(0.02)
    name = f"source-{open('VERSION').read()}"
    with zipfile.ZipFile(os.path.join(folder, name + "-py3-none-any.whl"), "w") as wheel:
        for file, text in {
            "METADATA": "Metadata-Version: 2.1\\nName: source\\nVersion: " + name[7:] + "\\n",
            "WHEEL": "Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
            "RECORD": "".join(f"{name}.dist-info/{each},,\\n" for each in ("METADATA", "WHEEL", "RECORD")),
        }.items():
            wheel.writestr(name + ".dist-info/" + file, text)
    return name + "-py3-none-any.whl"
"""
TELLS_HOW = """\
import json, os, sys
print(json.dumps({"argv": sys.argv[1:], "cwd": os.getcwd(), "python": sys.executable, "path": os.environ["PATH"]}))
sys.exit(int(os.environ.get("EXIT_CODE", "0")))
"""
RUNS_INVOKE = """\
import runpy
runpy.run_module("invoke", run_name="__main__", alter_sys=True)
"""


def make_source(folder: Path, version: str) -> None:
    """Write the source archive of a package that pip has to build."""
    with tarfile.open(folder / f"source-{version}.tar.gz", "w:gz") as archive:
        for file, text in {"pyproject.toml": PYPROJECT, "VERSION": version}.items():
            member = tarfile.TarInfo(f"source-{version}/{file}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))


def write_lists(project: Path, wheels: Path, changed: Mapping[str, str] | None = None) -> None:
    """Write lists of requirements like ours, with the hashes of the files built here.

    `changed`: pin -> its replacement.
    """
    (project / "requirements").mkdir(exist_ok=True)
    for name, pins in LISTS.items():
        text = ""
        for pin in ((changed or {}).get(pin, pin) for pin in pins):
            files = [*wheels.glob(f"{pin.replace('==', '-')}[-.]*")]
            hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files] or ["0" * 64]
            text += " \\\n".join([pin, *(f"    --hash=sha256:{each}" for each in hashes)]) + "\n"
        (project / "requirements" / f"{name}.txt").write_text(text, encoding="utf-8")


def make_wheel(folder: Path, name: str, version: str, files: dict[str, str], needs: str = "") -> None:
    info = f"{name}-{version}.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            wheel.writestr(path, text)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    make_wheel(folder, "setuptools", "999", {"setuptools/__init__.py": "", "setuptools/build_meta.py": BACKEND})
    make_wheel(folder, "invoke", "1", {"invoke/__init__.py": "", "invoke/__main__.py": TELLS_HOW})
    make_wheel(folder, "pytest", "1", {"pytest/__init__.py": "", "pytest/__main__.py": TELLS_HOW})
    make_wheel(folder, "torch", "1", {"torch/__init__.py": ""})
    make_wheel(folder, "needed", "1", {"needed/__init__.py": ""})
    make_source(folder, "1")
    return folder


class Project:
    """A tiny project in its own folder; calls its bootstrap.py as a user does."""

    def __init__(self, folder: Path, wheels: Path | None) -> None:
        folder.mkdir()
        self.folder = folder
        self.wheels: Path | None = wheels  # None: no network
        self.environment: dict[str, str] = {}
        shutil.copy(BOOTSTRAP, folder)
        (folder / "constraints.txt").write_text(CONSTRAINTS, encoding="utf-8")
        (folder / "deploy").mkdir()
        (folder / "deploy" / "__main__.py").write_text(RUNS_INVOKE, encoding="utf-8")
        if wheels:
            write_lists(folder, wheels)

    def start(self, *command: str) -> subprocess.Popen[str]:
        settings = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
        settings |= {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_NO_CACHE_DIR": "1"}
        settings |= {"HOLD": str(self.folder / "hold"), **self.environment}
        if self.wheels:
            settings["PIP_FIND_LINKS"] = str(self.wheels)
        return subprocess.Popen(
            [sys.executable, str(self.folder / "bootstrap.py"), *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=settings,
            cwd=self.folder.parent,
            start_new_session=True,
        )

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*command)
        out, err = process.communicate(timeout=under_load(600))
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def has(self, package: str) -> bool:
        return any((self.folder / ".venv").glob(f"[Ll]ib/**/site-packages/{package}/__init__.py"))


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Project:
    """A project in a folder with a hostile name, after the first call of bootstrap.py."""
    project = Project(tmp_path_factory.mktemp("ready") / HOSTILE_NAME, wheels)
    first = project.run("invoke", "--list")
    assert first.returncode == 0, first.stderr
    assert "creating .venv" in first.stderr
    assert json.loads(first.stdout)["argv"] == ["--list"]
    return project


def wait_until(true: Callable[[], bool], limit_s: float = 300) -> None:
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def bootstrap() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bootstrap", BOOTSTRAP)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("command", "extras"),
    [
        ("invoke train", {"app"}),
        ("invoke train --fraction 0.01 --on local", {"app"}),
        ("invoke --echo prepare --source orl", {"app"}),
        ("inv bench", {"app"}),
        ("invoke train --on ssh", set()),
        ("invoke train --on=runpod", set()),
        ("invoke train -o ssh", set()),
        ("invoke train --on", set()),
        ("invoke train --on ssh --pack jpeg95", {"pack"}),
        ("invoke deploy --pack=lossless --on=runpod", {"pack"}),
        ("invoke train --on ssh --pack none", set()),
        ("invoke train --pack jpeg95", {"app"}),
        ("invoke mine --on ssh", set()),
        ("invoke train --help", set()),
        ("invoke --help train", set()),
        ("invoke ui --port 8601", {"ui"}),
        ("sniperface ui --help", set()),
        ("invoke --list", set()),
        ("invoke", set()),
        ("invoke status --json", set()),
        ("invoke fetch-checkpoint", set()),
        ("pytest -k train", {"app", "dev", "s3", "wandb"}),
        ("invoke train --set track=wandb", {"app", "wandb"}),
        ("invoke train --set=track=wandb --on local", {"app", "wandb"}),
        ("invoke train --set track=tensorboard", {"app"}),
        ("invoke train --set soundtrack=wandb", {"app"}),
        ("invoke train --on ssh --set track=wandb", set()),
        ("python -m app.train track=wandb", {"app", "wandb"}),
        ("invoke train --data s3://bucket/images.npy", {"app", "s3"}),
        ("invoke train --on ssh --data=s3a://bucket/images.npy", {"s3"}),
        ("invoke train --on ssh --data https://host/s3://x", set()),
        ("ruff check .", {"dev"}),
        ("mypy --platform win32", {"app", "dev"}),
        ("sniperface train", {"app"}),
        ("sniperface status", set()),
        ("python -m app.config", {"app"}),
        ("python benchmarks/loader.py", {"app"}),
        ("python --version", set()),
        ("something else", set()),
    ],
)
def test_each_command_gets_the_extras_it_needs(bootstrap: ModuleType, command: str, extras: set[str]) -> None:
    assert bootstrap.extras_for(command.split()) == extras


def test_a_target_of_the_users_own_is_local_when_its_file_says_so(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "HERE", tmp_path)
    targets = tmp_path / "conf" / "deploy"
    targets.mkdir(parents=True)
    (targets / "desk.yaml").write_text('# mine\nprovider: "local"  # here\nroot: /x\n', encoding="utf-8")
    (targets / "far.yaml").write_text("provider: ssh\nhost: local\n", encoding="utf-8")
    assert bootstrap.is_local("desk")
    assert not bootstrap.is_local("far")
    assert not bootstrap.is_local("nowhere")
    (targets / "room.local.yaml").write_text("provider: local\n", encoding="utf-8")
    own = tmp_path / "home" / "sniperface" / "targets"
    own.mkdir(parents=True)
    (own / "loft.yaml").write_text("provider: local\n", encoding="utf-8")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("APPDATA", str(tmp_path / "home"))
    assert bootstrap.is_local("room")
    assert bootstrap.is_local("loft")
    (targets / "thin.yaml").write_text("provider: ssh\npack: jpeg95  # lossy\n", encoding="utf-8")
    assert bootstrap.extras_for(["invoke", "deploy", "--on", "thin"]) == {"pack"}
    assert bootstrap.extras_for(["invoke", "deploy", "--on", "thin", "--pack", "none"]) == set()


def test_an_older_python_can_read_the_file_and_says_one_sentence() -> None:
    source = BOOTSTRAP.read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 7))
    pretend = "import runpy, sys; sys.version_info = (3, 9, 18); runpy.run_path(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", pretend, str(BOOTSTRAP)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "3.10 to 3.14" in done.stderr
    assert "3.9.18" in done.stderr
    assert "install Python 3.11" in done.stderr


@pytest.mark.parametrize(
    ("version", "platform", "is_64_bit", "words"),
    [
        ((3, 10, 0), "win-amd64", True, []),
        ((3, 14, 9), "linux-x86_64", True, []),
        ((3, 12, 1), "linux-aarch64", True, []),
        ((3, 11, 1), "macosx-14.0-arm64", True, []),
        ((3, 9, 18), "win-amd64", True, ["3.9.18", "winget install", "py -3.11 bootstrap.py"]),
        ((3, 15, 0), "win-amd64", True, ["3.15.0", "winget install", "py -3.11 bootstrap.py"]),
        ((3, 15, 0), "linux-x86_64", True, ["3.15.0", "install Python 3.11"]),
        ((4, 0, 0), "linux-x86_64", True, ["4.0.0"]),
        ((3, 11, 4), "win-arm64", True, ["for ARM", "--architecture x64"]),
        ((3, 11, 4), "win32", False, ["32-bit", "--architecture x64"]),
        ((3, 11, 4), "linux-i686", False, ["32-bit"]),
    ],
)
def test_a_python_without_packages_is_told_before_anything_is_downloaded(
    bootstrap: ModuleType, version: tuple[int, ...], platform: str, is_64_bit: bool, words: list[str]
) -> None:
    told = bootstrap.why_not(version, platform, is_64_bit)
    assert bool(told) == bool(words)
    assert not [word for word in words if word not in told]
    assert "\n" not in told


def test_a_newer_python_stops_before_it_makes_anything(tmp_path: Path) -> None:
    project = Project(tmp_path / "project", None)
    pretend = "import runpy, sys; sys.version_info = (3, 15, 0); runpy.run_path(sys.argv[1], run_name='__main__')"
    argv = [sys.executable, "-c", pretend, str(project.folder / "bootstrap.py"), "invoke", "train"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "this is Python 3.15.0" in done.stderr
    assert not (project.folder / ".venv").exists()


@pytest.mark.parametrize(
    ("windows", "on_path", "uv", "venv", "typed"),
    [
        (False, {"python3": "here"}, False, False, "python3"),
        (False, {"python3": "other"}, False, False, "'{here}/python3'"),
        (False, {"python3": "here"}, True, False, "uv run"),
        (True, {"python3": "here", "py": "py"}, False, False, "python3"),
        (True, {"python3": "other", "py": "py"}, False, False, "py -{version}"),
        (True, {"py": "py"}, False, False, "py -{version}"),
        (True, {"py": "py"}, False, True, '& "{here}/python3"'),
        (True, {}, False, False, '& "{here}/python3"'),
        (True, {}, False, False, '"{here}/python3" in cmd'),
    ],
)
def test_printed_commands_name_the_launcher_that_leads_here(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, windows: bool, on_path: dict[str, str],
    uv: bool, venv: bool, typed: str,
) -> None:  # fmt: skip
    """`python` may be another installation or, on Windows, the alias that opens the Store."""
    typed, cmd, _ = typed.partition(" in cmd")
    monkeypatch.setenv("PROMPT", "$P$G") if cmd else monkeypatch.delenv("PROMPT", raising=False)
    here, other = tmp_path / "a here", tmp_path / "other"
    for folder in (here, other):
        folder.mkdir()
        (folder / "python3").touch()
    found = {name: str((here if where == "here" else other) / name) for name, where in on_path.items()}
    monkeypatch.setattr(bootstrap, "WINDOWS", windows)
    monkeypatch.setattr(sys, "executable", str(here / "python3"))
    monkeypatch.setattr(sys, "base_prefix", "/elsewhere" if venv else sys.prefix)
    monkeypatch.setattr(shutil, "which", lambda name: found.get(name))
    for name in ("UV", "UV_RUN_RECURSION_DEPTH"):
        monkeypatch.setenv(name, "1") if uv else monkeypatch.delenv(name, raising=False)
    version = "{}.{}".format(*sys.version_info[:2])
    assert bootstrap.launcher() == typed.format(here=here, version=version)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "the disk is full"),
        ("ERROR: ... [Errno 2] No such file: HINT: This error might have occurred since this system does not have "
         "Windows Long Path support enabled", "a path is too long"),
        ("ERROR: [WinError 5] Access is denied: 'C:\\x\\torch.dll'", "a file is in use"),
        ("ERROR: [WinError 32] The process cannot access it: it is being used by another process", "a file is in use"),
        ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]", "a certificate failed verification"),
        ("WARNING: Retrying after NewConnectionError('Failed to establish a new connection: [Errno 11001]')\n"
         "ERROR: No matching distribution found for torch", "check the network connection"),
        ("ERROR: No matching distribution found for torch==2.13.0", "lacks a package for this Python"),
        ("error: subprocess-exited-with-error", "use Python 3.11"),
        ("ERROR: something nobody saw", "check the network connection"),
    ],
)  # fmt: skip
def test_what_pip_says_becomes_what_helps(bootstrap: ModuleType, line: str, words: str) -> None:
    assert words in bootstrap.why_pip_failed(["Collecting x", *line.splitlines()])


def test_a_targets_file_of_powershell_is_read(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PowerShell writes UTF-16, or UTF-8 with a byte order mark. The command reports other bytes itself."""
    monkeypatch.setattr(bootstrap, "HERE", tmp_path)
    (tmp_path / "conf" / "deploy").mkdir(parents=True)
    file = tmp_path / "conf" / "deploy" / "mine.yaml"
    for encoding in ("utf-16", "utf-8-sig"):
        file.write_text("provider: local\r\nroot: größe\r\n", encoding=encoding)
        assert bootstrap.extras_for(["invoke", "train", "--on", "mine"]) == {"app"}
    file.write_bytes(b"provider: ssh\xe4\xff\n")
    assert bootstrap.extras_for(["invoke", "train", "--on", "mine"]) == set()


@POSIX_ONLY
def test_what_is_no_file_is_not_read_as_a_target(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """con.yaml is the console on Windows 10. Like a pipe, it would wait for input."""
    monkeypatch.setattr(bootstrap, "HERE", tmp_path)
    (tmp_path / "conf" / "deploy").mkdir(parents=True)
    os.mkfifo(tmp_path / "conf" / "deploy" / "con.yaml")
    told: list[object] = []
    asking = threading.Thread(target=lambda: told.append(bootstrap.is_local("con")), daemon=True)
    asking.start()
    asking.join(20)
    assert told == [False]


@POSIX_ONLY
def test_a_failure_of_venv_is_told_in_any_encoding(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "python"
    base.write_text("#!/bin/sh\nprintf 'no r\\344um'; exit 1\n")
    base.chmod(0o755)
    monkeypatch.setattr(bootstrap, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(sys, "_base_executable", str(base), raising=False)
    with pytest.raises(SystemExit):
        bootstrap.make_venv()
    assert "| no r" in capfd.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_called_alone_it_says_what_it_can_do_and_touches_nothing(tmp_path: Path, arguments: list[str]) -> None:
    project = Project(tmp_path / "project", tmp_path)
    done = project.run(*arguments)
    assert done.returncode == 0
    assert "python bootstrap.py invoke train" in done.stdout
    assert not (project.folder / ".venv").exists()


def test_the_command_runs_in_the_projects_folder_with_its_words_unchanged(ready: Project) -> None:
    words = ["--set", "a b", "it's", '"', "", "ü東", "--on", "$HOME", "*"]
    told = json.loads(ready.run("invoke", *words).stdout)
    assert told["argv"] == words
    assert Path(told["cwd"]) == ready.folder.resolve()
    assert Path(told["python"]).is_relative_to(ready.folder.resolve() / ".venv")
    assert Path(told["path"].split(os.pathsep)[0]).parent == ready.folder.resolve() / ".venv"


def test_the_exit_code_is_the_commands(ready: Project) -> None:
    ready.environment = {"EXIT_CODE": "3"}
    assert ready.run("invoke").returncode == 3
    ready.environment = {}
    assert ready.run("no-such-command").returncode == 2
    assert "unknown command 'no-such-command'" in ready.run("no-such-command").stderr


def test_a_second_call_needs_neither_network_nor_time(ready: Project) -> None:
    def seconds(command: list[str]) -> float:
        started = time.monotonic()
        subprocess.run(command, check=True, stderr=subprocess.PIPE)
        return time.monotonic() - started

    wheels, ready.wheels = ready.wheels, None
    assert ready.run("invoke").stderr == ""
    ready.wheels = wheels
    own = min(seconds([sys.executable, str(ready.folder / "bootstrap.py"), "python", "-c", ""]) for _ in range(5))
    assert own - min(seconds([sys.executable, "-c", ""]) for _ in range(5)) < under_load(0.3)


def test_the_project_folder_stays_clean(ready: Project) -> None:
    names = {path.name for path in ready.folder.iterdir()}
    assert names == {"bootstrap.py", "requirements", "constraints.txt", ".venv", ".bootstrap.lock", "deploy"}


def test_extras_are_added_when_a_command_needs_them(ready: Project) -> None:
    assert not ready.has("torch")
    added = ready.run("pytest")
    assert added.returncode == 0, added.stderr
    assert "with app and dev and s3 and wandb" in added.stderr
    steps = [line for line in added.stderr.splitlines() if re.match(r"bootstrap: +(step|done)", line)]
    assert [line for line in steps if "step" in line][-1] == "bootstrap: step 3 of 3: PyTorch"
    assert re.fullmatch(r"bootstrap:   done in \d+ s", steps[-1])
    assert ready.has("torch")
    assert ready.run("invoke", "train").stderr == ""


def test_a_change_of_the_pins_is_installed(ready: Project, wheels: Path) -> None:
    make_wheel(wheels, "invoke", "2", {"invoke/__init__.py": "", "invoke/__main__.py": "print('two')"})
    write_lists(ready.folder, wheels, {"invoke==1": "invoke==2"})
    assert ready.run("invoke").stdout == "two\n"
    write_lists(ready.folder, wheels)
    again = ready.run("invoke")
    assert json.loads(again.stdout)["argv"] == []
    assert "installing" in again.stderr


def test_what_was_deleted_from_the_environment_comes_back(ready: Project) -> None:
    for path in (ready.folder / ".venv").glob("[Ll]ib/**/site-packages/invoke*"):
        shutil.rmtree(path)
    again = ready.run("invoke")
    assert again.returncode == 0, again.stderr
    assert "repairing" not in again.stderr


def test_when_pip_fails_its_last_words_are_shown(ready: Project, wheels: Path) -> None:
    write_lists(ready.folder, wheels, {"invoke==1": "invoke==999"})
    failed = ready.run("invoke", "train")
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert "invoke==999" in failed.stderr
    assert failed.stderr.splitlines()[-1].startswith("bootstrap: pip failed (exit code 1)")
    assert failed.stderr.isascii()
    write_lists(ready.folder, wheels)
    again = ready.run("invoke", "train")
    assert again.returncode == 0, again.stderr
    assert "repairing" not in again.stderr


@pytest.mark.slow
@pytest.mark.parametrize("package", ["invoke", "setuptools", "source"])
def test_a_file_with_another_hash_is_refused(tmp_path: Path, wheels: Path, package: str) -> None:
    """pip refuses a file replaced in the registry under the same name and version, also one it would build."""
    replaced = tmp_path / "wheels"
    shutil.copytree(wheels, replaced)
    project = Project(tmp_path / "project", wheels)
    project.wheels = replaced
    [file] = replaced.glob(f"{package}-{'999' if package == 'setuptools' else '1'}[-.]*")
    file.unlink()
    if package == "source":
        make_source(replaced, "1")
        file.write_bytes(file.read_bytes() + b"\0")
    else:
        make_wheel(replaced, package, file.name.split("-")[1], {f"{package}/__init__.py": "print('never')"})
    failed = project.run("invoke")
    assert failed.returncode == 1
    assert "DO NOT MATCH THE HASHES" in failed.stderr
    installed = list((project.folder / ".venv").glob(f"[Ll]ib/**/site-packages/{package}/__init__.py"))
    assert not any("never" in file.read_text() for file in installed)  # ensurepip may install its own setuptools
    assert package == "setuptools" or not installed


def with_cuda(wheels: Path) -> None:
    """Replace torch by a build for CUDA, which requires one more package."""
    make_wheel(wheels, "torch", "1", {"torch/__init__.py": ""}, needs="Requires-Dist: nvidiax==1\n")
    make_wheel(wheels, "nvidiax", "1", {"nvidiax/__init__.py": ""})


@pytest.mark.slow
def test_torch_has_its_hashes_and_what_its_build_for_cuda_needs(
    bootstrap: ModuleType, tmp_path: Path, wheels: Path
) -> None:
    """A build whose hash is not listed is refused with advice. A listed build for CUDA brings its own libraries."""
    other = tmp_path / "wheels"
    shutil.copytree(wheels, other)
    with_cuda(other)
    project = Project(tmp_path / "project", wheels)
    project.wheels = other
    refused = project.run("pytest")
    assert refused.returncode == 1
    assert "SNIPERFACE_TORCH=unverified" in refused.stderr
    assert not project.has("torch")
    write_lists(project.folder, other)
    done = project.run("pytest")
    assert done.returncode == 0
    assert ("this computer has no NVIDIA GPU" in done.stderr) == (not bootstrap.has_gpu())
    assert project.has("torch")
    assert project.has("nvidiax")


def test_windows_has_a_gpu_if_its_driver_is_there(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's package there is a build for CPUs, so the user is told how to get the other."""
    (tmp_path / "System32").mkdir()
    monkeypatch.setenv("SYSTEMROOT", str(tmp_path))
    monkeypatch.setattr(bootstrap, "WINDOWS", True)
    assert not bootstrap.has_gpu()
    (tmp_path / "System32" / "nvcuda.dll").touch()
    assert bootstrap.has_gpu()


@pytest.mark.parametrize(("platform", "needed"), [("linux", True), ("win32", False), ("darwin", False)])
def test_torch_needs_the_libraries_of_cuda_on_linux_alone(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, needed: bool
) -> None:
    """The metadata of each build on PyPI name them, for Linux. Windows was warned of gigabytes that it never gets."""
    (tmp_path / "torch-2.13.0.dist-info").mkdir()
    marked = 'Requires-Dist: nvidia-nccl-cu13==2.29.7; platform_system == "Linux"\n'
    (tmp_path / "torch-2.13.0.dist-info" / "METADATA").write_text(f"Name: torch\nVersion: 2.13.0\n{marked}")
    monkeypatch.setattr(bootstrap, "PYTHON", Path(sys.executable))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sys, "platform", platform)
    assert bootstrap.needs_cuda() == needed


@pytest.mark.slow
def test_a_build_of_torch_in_a_folder_comes_before_that_of_the_index(tmp_path: Path, wheels: Path) -> None:
    """pip alone prefers the index: its links have hashes, and so it would download a build for CUDA."""
    index = tmp_path / "index" / "torch"
    index.mkdir(parents=True)
    make_wheel(index, "torch", "1", {"torch/__init__.py": ""}, needs="Requires-Dist: nvidiax\n")
    wheel = index / "torch-1-py3-none-any.whl"
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (index / "index.html").write_text(f'<a href="{wheel.name}#sha256={digest}">{wheel.name}</a>', encoding="utf-8")
    project = Project(tmp_path / "project", wheels)
    file = project.folder / "requirements" / "torch.txt"
    file.write_text(f"{file.read_text(encoding='utf-8').rstrip()} \\\n    --hash=sha256:{digest}\n", encoding="utf-8")
    project.environment = {"PIP_NO_INDEX": "0", "PIP_INDEX_URL": index.parent.as_uri()}
    done = project.run("pytest")
    assert done.returncode == 0, done.stderr
    assert project.has("torch")
    assert not project.has("nvidiax"), "it would have been installed for the build of the index"
    told = "import importlib.metadata as m; print(m.requires('torch'))"
    assert project.run("python", "-c", told).stdout.strip() == "None"


def test_of_two_at_once_one_installs(ready: Project) -> None:
    (ready.folder / "constraints.txt").write_text(CONSTRAINTS + "# a new day\n", encoding="utf-8")
    calls = [ready.start("invoke", str(index)) for index in range(2)]
    told = [call.communicate(timeout=under_load(600)) for call in calls]
    assert [json.loads(out)["argv"] for out, _ in told] == [["0"], ["1"]]
    assert sorted("installing" in err for _, err in told) == [False, True]


def test_an_environment_is_made_anew_if_it_is_broken_and_not_if_another_tool_filled_it(ready: Project) -> None:
    """Editors offer to make a .venv in a project, and people install packages of their own there."""
    shutil.rmtree(ready.folder / ".venv")
    venv.create(ready.folder / ".venv")
    (packages,) = (ready.folder / ".venv").glob("[Ll]ib/**/site-packages")
    own = packages / "plotnine-0.15.0.dist-info"
    own.mkdir()
    for folder in ("bin", "Scripts"):
        shutil.rmtree(ready.folder / ".venv" / folder, ignore_errors=True)
    refused = ready.run("invoke")
    assert refused.returncode == 2
    assert ".venv has packages that bootstrap.py did not install, such as plotnine: rename the folder" in refused.stderr
    assert own.exists()
    own.rmdir()
    again = ready.run("invoke")
    assert again.returncode == 0, again.stderr
    assert "repairing .venv" in again.stderr


@POSIX_ONLY
def test_an_environment_behind_a_link_is_not_emptied(tmp_path: Path, wheels: Path) -> None:
    """The folder may be the environment of another project, as of a second clone."""
    project, other = Project(tmp_path / "project", wheels), tmp_path / "other"
    other.mkdir()
    (other / "bootstrap.json").write_text(json.dumps({"folder": str(other), "extras": []}), encoding="utf-8")
    (project.folder / ".venv").symlink_to(other)
    done = project.run("invoke")
    assert done.returncode == 2
    assert f".venv is a link to {other}, which may belong to another project: delete the link" in done.stderr
    assert [*other.iterdir()] == [other / "bootstrap.json"]


@pytest.mark.slow
@POSIX_ONLY
def test_after_a_killed_installation_the_next_call_waits_for_its_pip_and_repairs(ready: Project, wheels: Path) -> None:
    make_source(wheels, "2")
    write_lists(ready.folder, wheels, {"source==1": "source==2"})
    hold = ready.folder / "hold"
    hold.touch()
    first = ready.start("invoke")
    wait_until((ready.folder / "hold.reached").exists)
    second = ready.start("invoke")
    assert second.stderr is not None
    assert "waiting" in second.stderr.readline()
    first.kill()
    first.communicate()
    assert second.poll() is None
    hold.unlink()
    out, err = second.communicate(timeout=under_load(600))
    assert second.returncode == 0, err
    assert "repairing .venv" in err
    assert json.loads(out)["argv"] == []
    assert ready.run("invoke").stderr == ""


@POSIX_ONLY
def test_ctrl_c_is_the_childs_to_answer(tmp_path: Path) -> None:
    script = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGINT, lambda *_: sys.exit(7))\n"
        "pathlib.Path(sys.argv[1]).touch()\n"
        "time.sleep(60)\n"
    )
    started = tmp_path / "started"
    parent = (
        "import importlib.util, os, sys\n"
        "spec = importlib.util.spec_from_file_location('bootstrap', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "sys.exit(module.run_as_child(sys.argv[2:], dict(os.environ)))\n"
    )
    child = [sys.executable, "-c", script, str(started)]
    process = subprocess.Popen([sys.executable, "-c", parent, str(BOOTSTRAP), *child], start_new_session=True)
    wait_until(started.exists)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: both processes get it
    assert process.wait(timeout=under_load(60)) == 7
