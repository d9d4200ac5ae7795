"""Each `next:` of an error is typed in the situation that printed it."""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.pod.base.lock import Lock
from tests.deploy.commands.test_remote import Box, make_box
from tests.deploy.commands.test_runpod_story import account  # noqa: F401 - a fixture
from tests.deploy.conftest import SOURCE, Project, end_tmux, wait_until
from tests.deploy.support import advice
from tests.deploy.support.servers import SSHD, openssh
from tests.support.emulators import lambda_cloud
from tests.support.emulators.hosts import HOSTS
from tests.support.emulators.runpod import Emulator

places = functools.cache(advice.advices)  # not before a test: the launcher is read, in a second
TYPED: set[str] = set()  # places whose advice was typed
RAN: set[str] = set()  # tests of this file
# Minutes: each types commands that deploy, train and stop.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not sys.platform.startswith("linux") or SSHD is None or shutil.which("tmux") is None,
        reason="needs Linux, tmux and an SSH server: apt-get install tmux openssh-server",
    ),
]
LONG = ("--set", "train.step_s=0.2", "--set", "train.epochs=500")
# Place -> the test of another file that does what the advice says.
ELSEWHERE = {
    "deploy/shell/host_keys.py:changed": (
        "deploy/shell/test_ssh_shell.py::test_the_advice_about_a_changed_host_key_works"
    ),
    "deploy/commands/app.py:_without_images": (
        "deploy/commands/test_remote.py::test_images_that_a_machine_no_longer_has_are_named"
    ),
    "deploy/runs/job.py:_busy": "deploy/commands/test_story.py::test_a_run_whose_folder_was_deleted_can_be_ended",
    "deploy/steps/restore.py:restore": "deploy/steps/test_restore.py::test_copies_that_cannot_be_read",
    "deploy/providers/runpod/create.py:_requested": (
        "deploy/providers/test_runpod_faults.py::test_a_creation_that_stays_unclear_is_named_and_found_later"
    ),
    "deploy/providers/rented.py:refuse_unreadable": (
        "deploy/providers/test_unreadable.py::test_an_unreadable_pod_is_in_ps_and_down_releases_it"
    ),
    "deploy/commands/watch.py:_over": "deploy/commands/test_watch.py::test_watch_fails_if_the_machine_still_bills",
    "deploy/specs/gpus.py:choose": "deploy/commands/test_gpus.py::test_offers_lists_only_these_gpus",
}
# Place -> why no test types it. `test_advice.py` checks that the command line accepts each.
NOT_TYPED = {
    "deploy/commands/ui.py:_server": "pip would load packages; tests/test_bootstrap.py types bootstrap.py",
    "deploy/steps/resolve.py:app": "pip would load packages; tests/test_bootstrap.py types bootstrap.py",
    "deploy/workspace/environment.py:ensure": "pip would load packages; tests/test_bootstrap.py types bootstrap.py",
    "deploy/providers/image.py:_refused": "a login at a registry needs an account",
    "deploy/providers/image.py:build": "a build that fails needs minutes; `doctor --on` is typed below",
    "deploy/providers/image.py:engine": "usermod changes this computer; `docker version` is typed below",
    "deploy/providers/docker.py:_create": "a build takes minutes; tests/support/images does it for other tests",
    "deploy/providers/docker.py:_refused": "a Docker engine that refuses needs a broken one",
    "deploy/providers/docker.py:_when_it_answers": "a container without an SSH server takes minutes to be given up",
    "deploy/providers/runpod/clusters.py:_give_back_or_refuse": "an emulated cluster has no machines to log in to",
    "deploy/billing/teardown.py:stop_run": "no known fault lets a supervisor ignore the request and report on",
    "deploy/runs/job.py:_wait_until_started": "no known fault keeps a supervisor from answering",
    "deploy/billing/hosts.py:free_ram": "a second command would have to start a run at that moment",
    "deploy/workspace/worktree.py:_refuse_respelled": "needs a disk that ignores upper and lower case",
    "deploy/runs/session.py:unfinished": "only `watch` gives a run here, and it has seen that the run is lost",
}


@pytest.fixture(autouse=True)
def _counted(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    RAN.add(request.node.originalname)


def advised(project: Project, *argv: str, code: int = 2) -> list[str]:
    """Run a command that fails. Returns the command that it advises, without the remark behind it."""
    said = project.invoke(*argv, code=code).stderr
    message, _, following = said.partition("error: ")[2].rstrip().partition("\nnext: ")
    assert following, said
    sentence = message.split("\n  | ")[0]
    found = [place for place in places() if place.is_printed_by(sentence, following)]
    assert found, said
    TYPED.update(map(str, found))
    return shlex.split(following.partition("   (")[0])  # as a shell splits it: the project's folder has a hostile name


def typed(project: Project, words: list[str], *more: str, code: int = 0) -> str:
    """Type the advice. Returns what it printed."""
    assert words[0] == "invoke", words
    return project.invoke(*words[1:], *more, code=code).stdout


def test_before_any_run(project: Project) -> None:
    for argv in (("compare",), ("note",), ("rm",)):
        typed(project, advised(project, *argv))
    assert typed(project, advised(project, "status", "--run", "nobody"), "--json")


def test_a_run_that_is_alive(project: Project) -> None:
    before = advised(project, "logs")
    typed(project, before, "--detach", *LONG)
    [run] = project.json("runs")
    wait_until(lambda: project.status_file(run["run_id"]).get("state") == "running")
    ends = [advised(project, "rm", run["run_id"]), advised(project, "train"), advised(project, "down")]
    follow = [advised(project, "attach")]
    end_tmux(project.socket)
    follow += [advised(project, "attach", code=1)]
    for words in ends:
        assert typed(project, words)
    assert project.json("status")["state"] == "stopped"
    for words in [*follow, advised(project, "attach", code=1)]:
        assert "grüße" in typed(project, words)


def test_a_run_that_failed(project: Project) -> None:
    again = advised(project, "train", "--set", "train.manner=fails", code=1)
    assert "attempt 2" in typed(project, again, code=1)
    assert advised(project, "watch", code=1) == again
    [run] = project.json("runs")
    (project.path / "runs" / run["run_id"] / "plan.json").unlink()
    typed(project, advised(project, "train", "--resume", "auto"))
    assert project.json("status")["state"] == "succeeded"


def test_a_target_on_which_a_run_is_being_started(project: Project) -> None:
    project.invoke("train")
    with Lock(project.path / ".sniperface" / "launching-local.lock", {"run_id": "other"}).acquire():
        words = advised(project, "train")
        assert "succeeded" in typed(project, words)


def test_a_port_that_is_taken(project: Project) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = advised(project, "ui", "--port", str(taken.getsockname()[1]))
    page = project.start(*words[1:])
    assert page.stdout
    assert "The page of your runs" in page.stdout.readline()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="needs the right to mount: run as root")
def test_a_repository_of_another_user(project: Project, tmp_path: Path) -> None:
    project.env["HOME"] = str(tmp_path)
    for folder in (project.path, project.path / ".git"):
        os.chown(folder, 65534, 65534)
    words = advised(project, "train")
    assert words[0] == "git"
    subprocess.run(words, env=project.environment, check=True)
    project.invoke("train", "--dry-run")


def without(project: Project, program: str, folder: Path) -> None:
    """Take a program off the PATH of the project's commands."""
    folder.mkdir()
    for path in os.environ["PATH"].split(os.pathsep):
        for file in Path(path).iterdir() if Path(path).is_dir() else ():
            if file.name != program and not (folder / file.name).is_symlink():
                (folder / file.name).symlink_to(file)
    project.env["PATH"] = str(folder)


def test_a_computer_without_tmux(project: Project, tmp_path: Path) -> None:
    project.invoke("train")
    without(project, "tmux", tmp_path / "bin")
    assert "grüße" in typed(project, advised(project, "attach", code=1))
    project.invoke("train")
    assert "grüße" in typed(project, advised(project, "attach", code=1))


def test_an_engine_that_is_not_there(project: Project) -> None:
    project.env |= {"DOCKER_HOST": "tcp://127.0.0.1:9", "SNIPERFACE_IMAGE": "me/x:1"}
    words = advised(project, "deploy", "--on", "docker", code=3)
    done = subprocess.run(words, env=project.environment, check=False, capture_output=True, text=True)
    assert (done.returncode, "127.0.0.1:9" in done.stderr) == (1, True)


@pytest.fixture
def box(project: Project, tmp_path: Path) -> Iterator[Box]:
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    project.env |= {"HOME": str(home), "SSH_AUTH_SOCK": ""}
    yield from make_box(project, tmp_path, openssh)


def test_a_host_that_lets_nobody_in(box: Box, tmp_path: Path) -> None:
    """Without a key, with a wrong key, with a key that has a passphrase, and with too many keys in the agent."""
    project, key = box.project, tmp_path / "home" / ".ssh" / "id_ed25519"
    box.target(key=None)
    make = advised(project, "deploy", "--on", "box")
    subprocess.run([*make, "-q", "-N", "", "-f", str(key)], check=True)
    words = advised(project, "deploy", "--on", "box")
    options = [
        "-o",
        "BatchMode=yes",
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        f"UserKnownHostsFile={tmp_path / 'known'}",
    ]
    done = subprocess.run([words[0], *options, "-i", str(key), *words[1:]], capture_output=True, text=True, check=False)
    assert "Permission denied" in done.stderr
    with (tmp_path / "server" / "authorized_keys").open("a") as allowed:
        allowed.write(key.with_suffix(".pub").read_text())
    box.target(key=str(key))
    box.invoke("deploy")
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", str(key)], check=True)
    words = advised(project, "deploy", "--on", "box")
    box.target(key=None)
    assert advised(project, "deploy", "--on", "box") == ["ssh-add"]
    asks = tmp_path / "asks"
    asks.write_text("#!/bin/sh\necho secret\n")
    asks.chmod(0o700)
    said = subprocess.run(["ssh-agent", "-s"], check=True, capture_output=True, text=True).stdout
    agent = dict(part.split("=", 1) for part in said.replace("\n", ";").split(";") if "=" in part)
    try:
        told = {
            **project.environment,
            **agent,
            "SSH_ASKPASS": str(asks),
            "SSH_ASKPASS_REQUIRE": "force",
            "DISPLAY": ":0",
        }
        subprocess.run(words, env=told, check=True, capture_output=True, stdin=subprocess.DEVNULL)
        project.env |= agent
        box.invoke("deploy")  # with the key of the agent
        for number in range(6):  # as many as a server lets try
            subprocess.run([*make, "-q", "-N", "", "-f", str(tmp_path / f"other{number}")], check=True)
        subprocess.run(["ssh-add", "-q", "-D"], env=told, check=True)
        subprocess.run(["ssh-add", "-q", *(tmp_path / f"other{each}" for each in range(6))], env=told, check=True)
        subprocess.run(["ssh-add", "-q", str(key)], env=told, check=True, stdin=subprocess.DEVNULL)
        for file in (key, key.with_suffix(".pub")):
            file.unlink()  # else the key would be offered first
        words = advised(project, "deploy", "--on", "box", code=3)
        listed = subprocess.run(words, env=told, check=True, capture_output=True, text=True).stdout
        assert len(listed.splitlines()) == 7
    finally:
        subprocess.run(["ssh-agent", "-k"], env={**os.environ, **agent}, check=True, capture_output=True)


def test_a_configuration_that_ssh_cannot_read(box: Box, tmp_path: Path) -> None:
    config = tmp_path / "home" / ".ssh" / "config"
    config.write_text("NoSuchKeyword yes\n")
    box.target(host="alias")
    words = advised(box.project, "deploy", "--on", "box")
    done = subprocess.run([words[0], "-F", str(config), *words[1:]], capture_output=True, text=True, check=False)
    assert "line 1: Bad configuration option: nosuchkeyword" in done.stderr
    config.write_text('Match exec "sleep 60"\n')
    words = advised(box.project, "deploy", "--on", "box")
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([words[0], "-F", str(config), *words[1:]], capture_output=True, check=False, timeout=1)


def test_a_key_that_has_no_public_half(project: Project, account: Emulator, tmp_path: Path) -> None:  # noqa: F811
    key = tmp_path / "my key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(key)], check=True)
    (tmp_path / "my key.pub").unlink()
    project.env["SNIPERFACE_KEY"] = str(key)
    words = advised(project, "deploy", "--on", "far")
    line = shlex.join([*words[:2], "-P", "secret", *words[2:-2]]) + f" > {shlex.quote(words[-1])}"
    subprocess.run(["sh", "-c", line], check=True)
    assert "ssh-add" in " ".join(advised(project, "deploy", "--on", "far"))
    assert account.names == []


def test_a_pod(project: Project, account: Emulator, tmp_path: Path) -> None:  # noqa: F811
    project.env["HOME"] = str(tmp_path / "home")
    (tmp_path / "home").mkdir()
    catalogue, account.account.gpus = account.account.gpus, {}
    nothing = advised(project, "offers", "--on", "far", code=3)
    account.account.gpus = catalogue
    assert "NVIDIA A40" in typed(project, nothing)
    account.no_room(1)
    assert typed(project, advised(project, "deploy", "--on", "far", code=3))
    typed(project, advised(project, "ssh", "--on", "far"))
    project.invoke("down", "--on", "far")
    typed(project, advised(project, "ssh", "--on", "far", code=1))
    run = project.json("train", "--on", "far", "--yes")
    typed(project, advised(project, "ssh", "--run", run["run_id"]))
    typed(project, advised(project, "rm", run["run_id"], "--yes"))
    assert account.names == []
    account.down()
    see = advised(project, "rm", run["run_id"], "--yes")
    account.down(False)
    typed(project, see)


def test_a_pod_that_says_nothing(project: Project, account: Emulator) -> None:  # noqa: F811
    """The advice is to try again, or to wait longer for a log that is late."""
    project.env["SNIPERFACE_SILENT_S"] = "1"
    account.next_pod(**HOSTS["silent"].oddities)
    words = advised(project, "deploy", "--on", "far", code=3)
    assert account.names == []
    typed(project, words)
    assert len(account.names) == 1
    other = advised(project, "train", "--on", "far", "--gpus", "RTX A4500")
    typed(project, other)
    assert account.names == []


def test_a_machine_of_lambda_cloud(project: Project, tmp_path: Path) -> None:
    emulator = lambda_cloud.Emulator()
    project.env |= {"LAMBDA_API_BASE_URL": emulator.url, "LAMBDA_API_KEY": lambda_cloud.KEY, "no_proxy": "*"}
    project.env["HOME"] = str(tmp_path)
    file = project.path / "conf" / "deploy" / "lam.yaml"
    try:
        file.write_text("provider: lambda\nroot: ~/s\ninstance_types: [gpu_1x_nothing]\nmax_usd: 5\n", encoding="utf-8")
        offers = advised(project, "deploy", "--on", "lam", code=3)
        assert "gpu_1x_a10" in typed(project, offers)
        looked = advised(project, "doctor", "--on", "lam", "--rent")
        assert looked == ["invoke", "doctor", "--on", "lam"]
        assert "lam" in typed(project, looked)
        file.write_text("provider: lambda\nroot: ~/s\ninstance_types: [gpu_1x_a10]\nmax_usd: 5\n", encoding="utf-8")
        emulator.faults = [("cut", "launch$")]
        typed(project, advised(project, "deploy", "--on", "lam", code=3))
    finally:
        emulator.close()


def test_a_pod_that_was_lost(project: Project, account: Emulator) -> None:  # noqa: F811
    project.invoke("train", "--on", "far", "--yes", "--detach", *LONG)
    account.account.terminate(account.account.all()[0].id)
    project.invoke("status", "--on", "far")
    words = advised(project, "train", "--on", "far")
    said = typed(project, words, "--detach", "--yes")
    assert "attempt 2" in said
    [pod] = account.account.all()
    pod.machine.server.process.kill()  # type: ignore[union-attr]
    keeps = advised(project, "down", "--on", "far", code=1)
    assert account.names
    typed(project, keeps)
    assert account.names == []


def test_a_trial_that_rents_nothing(project: Project, account: Emulator, tmp_path: Path) -> None:  # noqa: F811
    project.env["HOME"] = str(tmp_path)
    account.account.balance_usd = 0.0
    words = advised(project, "doctor", "--on", "far", "--rent", code=3)
    assert "0.00 USD" in typed(project, words, code=1)
    words = advised(project, "doctor", "--rent")
    assert words == ["invoke", "doctor", "--on", "runpod", "--rent"]
    assert advised(project, *words[1:], code=3)[-1] == "runpod"


def test_a_run_without_a_checkpoint(project: Project) -> None:
    project.invoke("train", "--detach", "--set", "train.step_s=0.5", "--set", "train.steps=1000")
    assert "running" in typed(project, advised(project, "fetch-checkpoint"))
    project.invoke("stop")


def test_each_place_that_prints_a_command_is_typed() -> None:
    """Fails for a new place: type its advice in a test above, or give the test elsewhere that does."""
    tests = {name for name in globals() if name.startswith("test_")} - {
        "test_each_place_that_prints_a_command_is_typed"
    }
    if tests - RAN:
        pytest.skip(f"needs all tests of this file: {len(tests - RAN)} did not run")
    mine = [place for place in places() if place.is_command and place.following.strip(advice.ANY)]
    left = [place for place in mine if str(place) not in TYPED and place.where not in {**ELSEWHERE, **NOT_TYPED}]
    assert not left, "\n".join(map(str, left))
    known = {place.where for place in mine}
    assert [where for where in {**ELSEWHERE, **NOT_TYPED} if where not in known] == []
    for test in ELSEWHERE.values():
        file, _, name = test.partition("::")
        assert f"def {name}(" in (SOURCE / "tests" / file).read_text(encoding="utf-8"), test
