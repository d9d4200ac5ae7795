"""A small real project for the launcher: real git, tmux and processes; only the training half is a stub."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from deploy.pod.base import processes
from deploy.shell import LocalShell
from tests.support.files import below
from tests.support.forks import forks, start_command
from tests.support.load import under_load

if TYPE_CHECKING:
    from tests.deploy.support.supervised import Supervised
    from tests.support.emulators.rig import Rig
    from tests.support.emulators.runpod import Emulator

SOURCE = Path(__file__).parents[2]
PRETEND = Path(__file__).parent / "support" / "pretend"
QUOTED = "faces" if sys.platform == "win32" else '"faces"'  # Windows has no names with a quotation mark
HOSTILE_NAMES = ["plain", f"it's a {QUOTED} földer $HOME; `x` {{a,b}}=%#"]


def wait_until(condition: Callable[[], Any], limit_s: float = 30) -> Any:
    """Poll a condition and return its first true value, so that no test sleeps for a fixed time.

    `limit_s` is for an idle computer.
    """
    began = time.monotonic()
    while True:
        asked = time.monotonic()
        answer = condition()
        if answer:
            return answer
        assert time.monotonic() - began < under_load(limit_s), f"not true after {time.monotonic() - began:.0f} s"
        # A slow poll, such as a command or `docker exec`, takes cores from the awaited work.
        time.sleep(max(0.02, 2 * (time.monotonic() - asked)))


def paced(step_s: float, epochs: int) -> tuple[str, ...]:
    """Settings of a stub run that ends by itself after commands of the test: on a busy computer both take longer."""
    return "--set", f"train.step_s={min(under_load(step_s), 2 * step_s):.2f}", "--set", f"train.epochs={epochs}"


class SoonAfter(LocalShell):
    """LocalShell with a clock that is ten seconds ahead."""

    def call(self, verb: str, *, again: bool = True, **arguments: Any) -> Any:
        answer = super().call(verb, again=again, **arguments)
        return answer + 10 if verb == "clock" else answer


class CutAfterReading(LocalShell):
    """LocalShell over a connection that breaks after each read and is back a minute later, by its clock."""

    waited_s = 0.0

    def call(self, verb: str, *, again: bool = True, **arguments: Any) -> Any:
        answer = super().call(verb, again=again, **arguments)
        if verb == "read":
            self.waited_s = 60.0
        return answer + self.waited_s if verb == "clock" else answer


def git(folder: Path, *argv: str) -> str:
    named = ["-c", "user.name=Test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", *named, *argv], cwd=folder, check=True, capture_output=True, text=True, encoding="utf-8"
    ).stdout.strip()


@dataclass
class Project:
    """A project folder with everything the commands need; runs the commands as a user does."""

    path: Path
    socket: str
    started: list[subprocess.Popen[str]] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "SNIPERFACE_TMUX_SOCKET": self.socket, "PYTHONUTF8": "1", **self.env}

    def invoke(self, *argv: str, code: int = 0, limit_s: float = 90) -> subprocess.CompletedProcess[str]:
        """Run a command. `limit_s` is for an idle computer."""
        limit_s = under_load(limit_s)
        server = forks()
        if server is not None and server.can_run(self.environment):
            done = server.run(["-m", "invoke", *argv], self.path, self.environment, limit_s)
        else:
            done = subprocess.run(
                [sys.executable, "-m", "invoke", *argv],
                cwd=self.path, env=self.environment, capture_output=True, text=True, encoding="utf-8", timeout=limit_s,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        assert done.returncode == code, f"{argv}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert 'tasks.py", line' not in done.stderr, done.stderr  # our own traceback; a job may print one
        return done

    def json(self, *argv: str, code: int = 0) -> Any:
        return json.loads(self.invoke(*argv, "--json", code=code).stdout)

    def start(self, *argv: str) -> subprocess.Popen[str]:
        process = start_command(["-m", "invoke", *argv], self.path, self.environment)
        self.started.append(process)
        return process

    def status_file(self, run_id: str) -> dict[str, Any]:
        path = self.path / ".sniperface" / "local" / "runs" / run_id / "status.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def files(self) -> set[str]:
        """Names and times of all files outside .git, to check that a command changed nothing."""
        inside = (path for path in below(self.path) if ".git" not in path.parts and "__pycache__" not in path.parts)
        return {f"{path.relative_to(self.path)} {path.stat().st_mtime_ns}" for path in inside if path.is_file()}


@pytest.fixture(params=HOSTILE_NAMES, ids=["plain-name", "hostile-name"])
def any_project(request: pytest.FixtureRequest, tmp_path: Path, template: Path) -> Iterator[Project]:
    """A project in a folder with a plain name, then one in a folder with a hostile name."""
    yield from copy_of(template, tmp_path / request.param)


@pytest.fixture
def project(tmp_path: Path, template: Path) -> Iterator[Project]:
    yield from copy_of(template, tmp_path / HOSTILE_NAMES[1])


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with everything that a project needs. Making it takes three times as long as copying it."""
    path = tmp_path_factory.mktemp("template") / "project"
    shutil.copytree(PRETEND, path, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(SOURCE / "deploy", path / "deploy")  # with bytecode, or the first command would have to compile
    shutil.copytree(SOURCE / "conf" / "deploy", path / "conf" / "deploy")
    for name in ("tasks.py", ".gitignore"):
        shutil.copy(SOURCE / name, path / name)
    git(path, "init", "--quiet", "--initial-branch=main", "--template=")
    git(path, "add", "--all")
    git(path, "commit", "--quiet", "-m", "first")
    git(path, "repack", "--quiet", "-a", "-d")  # one file instead of two hundred
    return path


def copy_of(template: Path, path: Path) -> Iterator[Project]:
    """Copy the template to a project's folder; afterwards end what runs there."""
    if os.name == "nt":
        shutil.copytree(template, path)
    else:  # in half the time
        subprocess.run(["cp", "-a", template, path], check=True)
    made = Project(path, f"sniperface-test-{uuid.uuid4().hex[:8]}")
    yield made
    _end(made)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Supervised]]:
    """Make supervisors of one machine, each with its own run folder; `make(root=...)` uses another machine."""
    from tests.deploy.support.supervised import Supervised

    made: list[Supervised] = []

    def build(name: str = "a-run's folder", root: Path = tmp_path / "root & more") -> Supervised:
        made.append(Supervised(root / "runs" / name))
        return made[-1]

    yield build
    for one in made:
        for pid in (one.process.pid if one.process else None, one.status.get("job_pid")):
            if pid:
                processes.kill_tree(pid)
        if one.process:
            one.process.communicate()


@pytest.fixture
def hears_ctrl_c() -> Iterator[None]:
    """Enable Ctrl-C: a shell starts background processes with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _end(project: Project) -> None:
    """End all processes that a test started."""
    for process in project.started:
        process.kill()
        process.communicate()
    for status in (project.path / ".sniperface" / "local" / "runs").glob("*/status.json"):
        told = json.loads(status.read_text(encoding="utf-8"))
        if told.get("ended") is None:
            for pid in (told.get("pid"), told.get("job_pid")):
                if pid:
                    processes.kill_tree(pid)
    end_tmux(project.socket)


def end_tmux(socket: str) -> None:
    """End a private tmux server, if it runs, and remove its socket."""
    if shutil.which("tmux"):
        subprocess.run(["tmux", "-L", socket, "kill-server"], capture_output=True, check=False)
        Path(os.environ.get("TMUX_TMPDIR", "/tmp"), f"tmux-{os.getuid()}", socket).unlink(missing_ok=True)


@pytest.fixture
def boot_s() -> float:
    """How long an emulated pod is STARTING; tests about waiting override it."""
    return 0.0


@pytest.fixture(params=["v2", "sdk"])
def both(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boot_s: float
) -> Iterator[Rig]:
    """The RunPod provider with the emulator, with each of the two APIs."""
    from tests.support.emulators.rig import rig

    yield from rig(request.param, tmp_path, monkeypatch, boot_s=boot_s)


@pytest.fixture
def v2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boot_s: float) -> Iterator[Rig]:
    """The RunPod provider with the emulator, REST only."""
    from tests.support.emulators.rig import rig

    yield from rig("v2", tmp_path, monkeypatch, boot_s=boot_s)


@pytest.fixture
def sdk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boot_s: float) -> Iterator[Rig]:
    """The RunPod provider with the emulator, RunPod's own package only."""
    from tests.support.emulators.rig import rig

    yield from rig("sdk", tmp_path, monkeypatch, boot_s=boot_s)


@pytest.fixture
def emulator(project: Project) -> Iterator[Emulator]:
    """The RunPod account that the project's commands reach."""
    from tests.support.emulators.rig import breaches
    from tests.support.emulators.runpod import KEY, Emulator

    made = Emulator()
    project.env |= {"RUNPOD_API_BASE_URL": made.url, "RUNPOD_API_KEY": KEY, "HOME": str(project.path / "home")}
    yield made
    made.close()
    assert breaches(made) == []
