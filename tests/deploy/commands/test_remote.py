"""The commands on a machine by SSH: a real server, real git, tmux and processes; only the training is a stub."""

from __future__ import annotations

import base64
import getpass
import hashlib
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.data.sources.source import Source
from app.prepare import prepare as app_prepare
from deploy.pod.base import processes
from deploy.pod.base.folder import read_json
from deploy.runs import records
from deploy.shell.host_keys import fingerprint
from deploy.specs.names import project_word
from tests.deploy.conftest import Project, paced, wait_until
from tests.deploy.support.pretend.app.prepare import make as prepare
from tests.deploy.support.servers import SSHD, Server, asyncssh_server, openssh
from tests.support.faults import Fault
from tests.support.files import contents
from tests.support.load import under_load

needs_proc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs kill -9 and /proc: run on Linux")
needs_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux: apt-get install tmux")
SLOW_STEPS = ("--set", "train.step_s=0.2", "--set", "train.epochs=500")


@dataclass
class Box:
    """A project with a target `box`: an SSH server on this computer, with its own root and RAM folder."""

    project: Project
    server: Server
    root: Path
    ram: Path

    def invoke(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        return self.project.invoke(words[0], "--on", "box", *words[1:], code=code)

    def json(self, *words: str, code: int = 0) -> Any:
        return json.loads(self.invoke(*words, "--json", code=code).stdout)

    def staged(self, name: str = "images.npy") -> Path:
        """The newest staged file of this name, in the RAM folder of the user who logs in."""
        found = self.ram.glob(f"sniperface-{getpass.getuser()}/*/{name}")
        return max(found, key=lambda path: path.stat().st_mtime_ns)

    def target(self, **values: object) -> None:
        told = {
            "provider": "ssh",
            "host": "127.0.0.1",
            "port": self.server.port,
            "key": str(self.server.key),
            "fingerprint": fingerprint(base64.b64decode(self.server.host_key.split()[1])),
            "root": str(self.root),
            "stage_to": str(self.ram),
            "python": sys.executable,
            **values,
        }
        place = self.project.path / "conf" / "deploy" / "box.yaml"
        place.write_text(json.dumps(told), encoding="utf-8")  # JSON is YAML


def make_box(project: Project, folder: Path, make: Callable[[Path], AbstractContextManager[Server]]) -> Iterator[Box]:
    with make(folder / "server") as server:
        box = Box(project, server, folder / "far away" / "röot", folder / "ram")
        box.target()
        yield box
        # A process on the "machine" would outlive the test.
        for status in (box.root / "runs").glob("*/status.json"):
            told = json.loads(status.read_text(encoding="utf-8"))
            for pid in (told.get("pid"), told.get("job_pid")) if told.get("ended") is None else ():
                if pid:
                    processes.kill_tree(pid)


@pytest.fixture(params=["openssh", "asyncssh"])
def any_box(request: pytest.FixtureRequest, project: Project, tmp_path: Path) -> Iterator[Box]:
    """A box with each of the two servers."""
    if request.param == "openssh" and SSHD is None:
        pytest.skip("needs an SSH server: apt-get install openssh-server")
    yield from make_box(project, tmp_path, openssh if request.param == "openssh" else asyncssh_server)


@pytest.fixture
def box(project: Project, tmp_path: Path) -> Iterator[Box]:
    """A box with OpenSSH's server if it is installed, else with asyncssh's."""
    yield from make_box(project, tmp_path, openssh if SSHD else asyncssh_server)


def test_the_everyday_five(any_box: Box) -> None:
    """Deploy, training on a fraction, logs, status and download give the same documents and files as a local target."""
    box = any_box
    ready = box.json("deploy")
    assert ready["root"] == str(box.root)
    again = box.invoke("deploy").stdout
    assert "already there" in again
    done = box.json("train", "--fraction", "0.5")
    assert (done["state"], done["fraction"]) == ("succeeded", 0.5)
    home = box.project.path / "runs" / done["run_id"]
    assert {path.name for path in home.iterdir()} == {
        "plan.json", "placement.json", "run.json", "config.yaml", "train.log", "status.json", "metrics.jsonl",
        "checkpoints", "report.html",
    }  # fmt: skip
    assert "grüße" in box.invoke("logs").stdout
    assert box.json("status")["state"] == "succeeded"
    shutil.rmtree(home / "checkpoints")
    fetched = box.json("fetch-checkpoint", "--which", "best")
    assert fetched["epoch"] == 0
    assert Path(fetched["path"]).is_file()
    plan = records.carried_out(home.parent, home.name)
    assert plan["run_dir"] == str(box.root / "runs" / done["run_id"])
    assert not (box.project.path / ".sniperface" / "local").exists()


def test_a_file_of_the_laptop_is_staged_by_block(box: Box, tmp_path: Path) -> None:
    """A fraction uploads only its share of the bytes. Data that is there is not sent again. No partial file remains."""
    images = tmp_path / "faces" / "images.npy"
    prepare(images, rows=400)
    done = box.json("train", "--data", str(images), "--fraction", "0.1")
    assert done["state"] == "succeeded"
    staged = next(box.ram.rglob("*-f0.1/images.npy"))
    about = json.loads(staged.with_name("manifest.json").read_text())
    assert about["selection"]["fraction"] == 0.1
    assert staged.stat().st_size < images.stat().st_size / 2
    whole = box.json("train", "--data", str(images))
    assert whole["state"] == "succeeded"
    assert box.staged().read_bytes()[-1000:] == images.read_bytes()[-1000:]
    assert not list(box.ram.rglob("*.part"))
    assert "already there" in box.invoke("train", "--data", str(images)).stdout


def test_image_files_of_the_laptop_are_staged_by_block(box: Box, tmp_path: Path) -> None:
    """As pixels. Files that do not fit end with one sentence before anything is sent."""
    images = tmp_path / "faces" / "images.jpegs"
    prepare_files(images, rows=400)
    plan = box.json("train", "--dry-run", "--data", str(images), "--fraction", "0.1")
    assert box.json("train", "--data", str(images), "--fraction", "0.1")["state"] == "succeeded"
    staged = next(box.ram.rglob("*-f0.1/images.jpegs"))
    assert plan["data"]["bytes"] == staged.stat().st_size < images.stat().st_size / 2
    offsets = np.load(staged.with_name("offsets.npy"))
    assert (offsets[0], offsets[-1]) == (0, staged.stat().st_size)
    assert box.json("train", "--data", str(images.parent))["state"] == "succeeded"
    assert box.staged("images.jpegs").read_bytes() == images.read_bytes()
    assert box.staged("offsets.npy").read_bytes() == images.with_name("offsets.npy").read_bytes()
    assert not list(box.ram.rglob("*.part"))
    assert "already there" in box.invoke("train", "--data", str(images)).stdout
    assert (
        "small already: leave it out" in box.invoke("train", "--data", str(images), "--pack", "lossless", code=2).stderr
    )
    images.write_bytes(images.read_bytes()[:-1])
    assert "is truncated" in box.invoke("train", "--data", str(images), code=2).stderr


def prepare_files(images: Path, rows: int) -> None:
    """Files of other lengths for each row. The pretended training does not decode them."""
    files = [hashlib.sha256(str(row).encode()).digest() * (3 + row % 5) for row in range(rows)]
    source = Source(
        "faces",
        rows,
        lambda start, stop: range(start, stop),
        None,
        decode=lambda some: np.broadcast_to(np.uint8(some.start % 256), (len(some), 112, 112, 3)),
        held_out=rows // 4,
        block_rows=10,
        stored=lambda some: [files[row] for row in some],
    )
    app_prepare(source, images)


def test_images_may_lie_on_the_machine(box: Box, tmp_path: Path) -> None:
    """`--data machine:PATH` names images on the machine. They are checked once it is ready, and copied into its RAM."""
    images = tmp_path / "volume" / "faces" / "images.npy"
    prepare(images, rows=60)
    plan = box.json("train", "--dry-run", "--data", f"machine:{images}")
    assert (plan["data"]["where"], plan["data"]["ready"]) == ("machine", False)
    assert box.json("train", "--data", f"machine:{images}")["state"] == "succeeded"
    assert box.staged().stat().st_size == images.stat().st_size
    failed = box.invoke("train", "--data", "machine:/nowhere/images.npy", code=2)
    assert "on the machine there is no file /nowhere/images.npy" in failed.stderr
    assert "absolute path" in box.invoke("train", "--data", "machine:images.npy", code=2).stderr


def test_a_dry_run_looks_at_a_host_that_costs_nothing(box: Box) -> None:
    """The plan tells its cores, and changes nothing there. A host that does not answer is named, and the plan shown."""
    before = sorted(str(path) for path in box.root.rglob("*"))
    plan = box.json("train", "--dry-run")
    assert plan["cores"] > 0
    assert "looked at when the run starts" not in box.invoke("train", "--dry-run").stdout
    assert sorted(str(path) for path in box.root.rglob("*")) == before
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        box.target(port=nobody.getsockname()[1])
        said = box.invoke("train", "--dry-run").stdout
    assert "warning: target 'box' could not be looked at: " in said
    assert "looked at when the run starts" in said


class Ranges(http.server.SimpleHTTPRequestHandler):
    """A file server that supports HTTP ranges."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data, wanted = path.read_bytes(), self.headers.get("Range", "bytes=0-")
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last) + 1 if last else None]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A folder with a data set, served over HTTP."""
    prepare(tmp_path / "bucket" / "faces" / "images.npy", rows=60)
    handler = partial(Ranges, directory=str(tmp_path / "bucket"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/faces/images.npy"
        server.shutdown()


def test_images_may_lie_at_an_address(box: Box, address: str, tmp_path: Path) -> None:
    """The machine downloads the images itself. A wrong address ends the command with the reason."""
    assert box.json("train", "--data", address)["state"] == "succeeded"
    assert box.staged().stat().st_size == (tmp_path / "bucket/faces/images.npy").stat().st_size
    wrong = box.invoke("train", "--data", address.replace("faces", "nothing"), code=2)
    assert "there is no file http://" in wrong.stderr
    nobody = box.invoke("train", "--data", "http://127.0.0.1:9/faces/images.npy", code=2)
    assert "cannot be reached" in nobody.stderr


def test_a_full_ram_disk_has_a_plan_b(box: Box, tmp_path: Path, fault: Fault) -> None:
    """The laptop's images are kept on the machine's disk instead, and the command says so."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("needs the right to mount: run this as root on Linux")
    box.ram.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(box.ram)], check=False).returncode:
        pytest.skip("needs the right to mount")
    try:
        images = tmp_path / "faces" / "images.npy"
        prepare(images, rows=60)
        fault.strikes()
        done = box.invoke("train", "--data", str(images))
        assert "kept on disk instead" in done.stdout or (box.root / "data").exists()
        assert list((box.root / "data").rglob("images.npy"))
        fault.leaves_out(truth="the command itself says it, before anything runs")
        fault.checkpoints(*(box.root / "runs").iterdir(), *(box.project.path / "runs").iterdir())
        fault.machines(box.project.json("ps"), [])
    finally:
        subprocess.run(["umount", str(box.ram)], check=True)


@pytest.mark.slow
def test_wrong_hosts_are_told_in_a_sentence(box: Box) -> None:
    """An unreachable host gives exit code 3. Nothing is sent to a host with a changed or unknown host key."""
    box.target(port=1)
    assert "cannot be reached" in box.invoke("deploy", code=3).stderr
    box.target(host="no.such.host.invalid")
    said = box.invoke("deploy", code=3).stderr
    assert "the host name cannot be resolved" in said
    assert "\nnext: set host, user and key in conf/deploy/" in said
    box.target(fingerprint="SHA256:" + "A" * 43)
    changed = box.invoke("deploy", code=1).stderr
    assert "another host key" in changed
    assert changed.startswith("error: ")
    box.target(fingerprint=None)
    unknown = box.invoke("deploy", code=2).stderr
    assert "fingerprint: SHA256:" in unknown
    assert not box.root.exists()


def test_doctor_names_the_fix_of_a_host_that_cannot_be_reached(box: Box) -> None:
    box.target(port=1)
    findings = {each["what"]: each for each in box.json("doctor", code=1)}
    assert findings["machine"]["level"] == "problem"
    assert findings["machine"]["fix"] == "set host, user and key in conf/deploy/box.yaml"


def test_a_run_is_stopped_and_goes_on(box: Box) -> None:
    """Ctrl-C leaves the run alone, `stop` makes a checkpoint, `--resume auto` continues the run on the same machine."""
    following = box.project.start("train", "--on", "box", *SLOW_STEPS)
    first = wait_until(lambda: list((box.root / "runs").glob("*/checkpoints/epoch_000.json")), 60)[0]
    following.send_signal(signal.SIGINT)
    said, _ = following.communicate(timeout=under_load(120))
    assert "continues" in said
    run_id = first.parents[1].name
    assert box.json("status")["state"] == "running"
    assert "is running on target" in box.invoke("train", code=2).stderr
    stopped = box.json("stop")
    assert (stopped["state"], stopped["run_id"]) == ("stopped", run_id)
    assert Path(stopped["checkpoint"]["path"]).is_file()
    went_on = box.json("train", "--resume", "auto", "--detach")
    assert went_on["run_id"] == run_id
    status = wait_until(lambda: (s := box.json("status")) and s["attempt"] == 2 and s["step"] and s)
    assert status["step"] >= stopped["checkpoint"]["step"]
    refused = box.invoke("down", code=2).stderr  # this host was not rented
    assert f"run {run_id} is running on target 'box', whose machine was not rented" in refused
    assert "invoke stop --on box" in refused
    box.invoke("stop")
    assert "the host was not rented and stays" in box.invoke("down").stdout
    assert "there is nothing to release" in box.invoke("down").stdout


def test_down_frees_what_was_staged_on_a_host_that_stays(box: Box, tmp_path: Path) -> None:
    """It says how much and where. Images of a run that lives there stay, and `stop` is named."""
    images = tmp_path / "faces" / "images.npy"
    prepare(images, rows=400)
    run_id = box.json("train", "--data", str(images), "--detach", *SLOW_STEPS)["run_id"]
    wait_until(lambda: box.json("status")["step"])
    assert f"run {run_id} is running" in box.invoke("down", code=2).stderr
    folder = box.staged().parent
    box.invoke("stop")
    assert folder.is_dir()
    with box.staged().open("rb"):  # as a command of another computer would have it
        kept = box.invoke("down")
    assert f"kept 0.01 GiB in {folder} on 127.0.0.1: a process uses them" in kept.stderr
    told = box.json("down")
    assert told == [
        {"target": "box", "host": "127.0.0.1", "freed_gib": 0.014, "freed": [str(folder)], "kept": []}
    ]  # fmt: skip
    assert list(box.ram.iterdir()) == []


def test_stop_downloads_the_newest_checkpoint_of_a_run_that_is_over(box: Box) -> None:
    """A detached run has its last checkpoints only on the machine. `status` names the command that downloads one."""
    run_id = box.json("train", "--detach")["run_id"]
    done = wait_until(lambda: (s := box.invoke("status").stdout) and "succeeded" in s and s, 60)
    assert f"invoke fetch-checkpoint --on box --run {run_id}" in done
    assert "see its status" not in done
    newest = max(path.stem for path in (box.root / "runs" / run_id / "checkpoints").glob("epoch_*.json"))
    assert not list((box.project.path / "runs" / run_id).glob("checkpoints/*.pt"))
    over = box.json("stop")
    assert (over["state"], Path(over["checkpoint"]["path"]).stem) == ("succeeded", newest)
    assert Path(over["checkpoint"]["path"]).is_file()


def test_the_laptop_may_die_while_it_follows(box: Box, fault: Fault) -> None:
    """`kill -9` of the command does not affect the job. A second command shows each byte of the log once."""
    following = box.project.start("train", "--on", "box", *paced(0.1, 8))
    run = wait_until(lambda: list((box.root / "runs").glob("*/checkpoints/epoch_000.json")), 60)[0].parents[1]
    following.kill()
    fault.strikes()
    following.communicate()
    fault.told(lambda: box.json("status")["state"] in ("running", "succeeded"))
    followed = box.invoke("logs", "--follow").stdout
    fault.log(followed.encode("utf-8"), (run / "train.log").read_bytes())
    assert followed.count("rank 0 step 24\n") == 1
    assert box.json("status")["state"] == "succeeded"
    assert box.json("fetch-checkpoint")["epoch"] == 7
    fault.checkpoints(run, box.project.path / "runs" / run.name)
    fault.machines(box.project.json("ps"), [])


def test_a_checkpoint_is_kept_current_while_training(box: Box) -> None:
    """`fetch-checkpoint --watch` downloads each newer checkpoint, and ends with the run."""
    box.json("train", "--detach", *paced(0.2, 5))
    said = box.invoke("fetch-checkpoint", "--watch").stdout
    assert "epoch 4" in said.splitlines()[-1]
    home = next((box.project.path / "runs").glob("*/checkpoints"))
    assert (home / "epoch_004.pt").is_file()
    assert not list(home.glob("*.part"))


@needs_tmux
def test_attach_shows_the_live_session(box: Box) -> None:
    """`attach` works in a real terminal, through the system's ssh. It is read-only: Ctrl-C does not reach the job."""
    if shutil.which("ssh") is None or SSHD is None:
        pytest.skip("needs an SSH server: apt-get install openssh-server")
    box.json("train", "--detach", *SLOW_STEPS)
    terminal = ["tmux", "-L", f"{box.project.socket}-t", "-f", "/dev/null"]
    command = [sys.executable, "-m", "invoke", "attach", "--on", "box"]
    try:
        subprocess.run(
            [*terminal, "new-session", "-d", "-x", "150", "-y", "40", "-c", str(box.project.path), *command],
            check=True, env=box.project.environment,
        )  # fmt: skip

        def screen() -> str:
            done = subprocess.run([*terminal, "capture-pane", "-p"], capture_output=True, text=True, check=False)
            return done.stdout

        wait_until(lambda: "rank 0 step" in screen(), 60)
        subprocess.run([*terminal, "send-keys", "C-c"], check=True)
        seen = screen().rstrip().splitlines()[-4:]
        wait_until(lambda: screen().rstrip().splitlines()[-4:] != seen)
        assert box.json("status")["state"] == "running"
    finally:
        subprocess.run([*terminal, "kill-server"], check=False, capture_output=True)
        box.invoke("stop")


def test_an_export_comes_with_its_thresholds(box: Box) -> None:
    """The JSON beside an ONNX file is downloaded too. Results of `evaluate` that have the checkpoint are uploaded."""
    run = box.json("train")
    home = box.project.path / "runs" / run["run_id"]
    results = home / "evaluation" / "eval.json"
    results.parent.mkdir()
    results.write_text(json.dumps({"weights": [{"sha256": run["checkpoint"]["sha256"], "sets": {}}]}))
    told = box.invoke("export", "--out", "of run/m.onnx").stdout.splitlines()
    words = dict(word.split("=", 1) for word in json.loads(told[0]))
    assert Path(words["evaluation"]).read_text() == results.read_text()
    assert Path(words["evaluation"]).is_relative_to(box.root)
    assert sorted(path.name for path in (box.project.path / "of run").iterdir()) == ["m.json", "m.onnx"]
    box.invoke("export", "--out", "of run/m.onnx")  # its own file is replaced
    checkpoint = next((home / "checkpoints").glob("*.pt"))
    before = {path: path.read_bytes() for path in checkpoint.parent.iterdir()}
    assert checkpoint.with_suffix(".json") in before
    for out in (checkpoint.with_suffix(".onnx"), checkpoint):
        refused = box.invoke("export", "--out", str(out), code=2).stderr
        assert f"would replace {checkpoint.name} or the JSON that describes it" in refused
    assert {path: path.read_bytes() for path in checkpoint.parent.iterdir()} == before


def test_images_that_a_machine_no_longer_has_are_named(box: Box) -> None:
    """`down` frees the RAM of a host. Another failure of a command stays as it is."""
    run_id = box.json("train")["run_id"]
    assert "it does not work" in box.invoke("mine", "--set", "fails=1", code=1).stderr
    staged = box.staged()
    box.invoke("down")
    refused = box.invoke("mine", "--set", "fails=1", code=1).stderr.splitlines()
    assert refused[0] == (
        f"error: target 'box' no longer has the images of run {run_id}, {staged}: deploy stages them again"
    )
    assert refused[1:] == ["next: invoke deploy --on box"]


def test_the_apps_other_commands_run_where_the_run_is(box: Box, tmp_path: Path) -> None:
    """The results of `evaluate` are downloaded. `prepare` runs on the machine, too."""
    box.json("train")
    said = box.invoke("evaluate").stdout
    assert "downloaded: " in said
    for side in ("gallery", "probes"):  # of the same name, and yet two places on the machine
        (tmp_path / side / "photos").mkdir(parents=True)
        for name in ("images.npy", "labels.npy", "people.csv"):
            (tmp_path / side / "photos" / name).write_text(f"{side}'s {name}")
    sides = [f"--{side}={tmp_path / side / 'photos'}" for side in ("gallery", "probes")]
    told = dict(word.split("=", 1) for word in json.loads(box.invoke("evaluate", *sides).stdout.splitlines()[0]))
    for side in ("gallery", "probes"):
        assert not told[side].startswith(str(tmp_path / side))
        for name in ("images.npy", "labels.npy", "people.csv"):
            assert Path(told[side]).with_name(name).read_text() == f"{side}'s {name}"
    bare = box.invoke("evaluate", "--gallery", str(tmp_path), code=2).stderr
    assert "has no images.npy on this computer; make one by" in bare
    there = box.invoke("prepare", "--source", "orl", "--out", str(tmp_path / "volume/orl")).stdout
    assert f"--data machine:{tmp_path}/volume/orl/images.npy" in there
    assert (tmp_path / "volume/orl/images.npy").is_file()


def test_a_launch_that_fails_leaves_a_record(box: Box) -> None:
    """The command prints the reason, and the run is recorded as failed."""
    box.target(python="/no/such/python")
    failed = box.invoke("train", code=1)
    assert "python" in failed.stderr
    run = json.loads(box.project.invoke("runs", "--json").stdout)[0]
    assert run["state"] == "failed"


def test_runs_wait_for_their_turn(box: Box) -> None:
    """Runs with --queue wait, and start in the order of their commands. `stop` takes a waiting run out of the queue."""
    first = box.json("train", "--detach", *SLOW_STEPS)["run_id"]
    second = box.json("train", "--detach", "--queue")
    third = box.json("train", "--detach", "--queue")["run_id"]
    assert second["state"] == "planned"
    listed = {run["run_id"]: run for run in json.loads(box.project.invoke("runs", "--json").stdout)}
    assert [listed[run]["state"] for run in (first, second["run_id"], third)] == ["running", "planned", "planned"]
    assert "waiting for run" in listed[third]["reason"]
    assert box.json("stop", "--run", third)["state"] == "stopped"
    assert box.json("stop", "--run", first)["state"] == "stopped"
    followed = box.invoke("logs", "--follow", "--run", second["run_id"])
    assert "rank 0 step 9" in followed.stdout
    states = {run["run_id"]: run["state"] for run in json.loads(box.project.invoke("runs", "--json").stdout)}
    assert (states[first], states[second["run_id"]], states[third]) == ("stopped", "succeeded", "stopped")


def test_a_machine_that_vanished_is_replaced(box: Box, tmp_path: Path) -> None:
    """The laptop's checkpoint is uploaded to another machine, where the run continues under the same id."""
    box.json("train", "--detach", *paced(0.2, 6))
    wait_until(lambda: list((box.root / "runs").glob("*/checkpoints/epoch_001.json")), 60)
    fetched = box.json("fetch-checkpoint")
    run = next((box.root / "runs").iterdir())
    processes.kill_tree(json.loads((run / "status.json").read_text())["pid"])
    box.root.rename(tmp_path / "burnt")
    assert box.json("status")["state"] == "lost"
    done = box.json("train", "--resume", "auto")
    assert (done["run_id"], done["state"], done["checkpoint"]["epoch"]) == (run.name, "succeeded", 5)
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["event"] == "start"][-1] >= fetched["step"]


def test_a_watched_run_is_finished_whatever_happens(box: Box, tmp_path: Path) -> None:
    """The machine vanishes during the run. `watch` continues the run from its checkpoint and downloads the last one."""
    box.json("train", "--detach", *paced(0.2, 8))
    watching = box.project.start("watch", "--on", "box")
    wait_until(lambda: list((box.project.path / "runs").glob("*/checkpoints/epoch_*.json")), 60)
    run = next((box.root / "runs").iterdir())
    processes.kill_tree(json.loads((run / "status.json").read_text())["pid"])
    box.root.rename(tmp_path / "burnt")
    said, complaint = watching.communicate(timeout=under_load(120))
    assert watching.returncode == 0, complaint
    assert "continuing on another machine" in said
    assert said.splitlines()[-1].endswith("succeeded")
    assert next((box.project.path / "runs").glob("*/checkpoints/epoch_007.json"))


@pytest.mark.slow
def test_a_machine_is_guarded_before_anything_takes_long(box: Box) -> None:
    """The launch arms the guard, which reports idleness after idle_min. After the run no file holds the secret."""
    box.target(idle_min=0.2, secrets=["BOX_TOKEN"])
    box.project.env["BOX_TOKEN"] = "planted-secret-5171"
    said = box.invoke("train", "--detach", *paced(0.3, 4)).stdout
    assert "guarded: idle_min 0.2" in said
    guard = json.loads((box.root / "guard.json").read_text())
    assert (guard["idle_min"], guard["machine"]) == (0.2, f"sniperface-{project_word(box.project.path.name)}-box")
    run = next((box.root / "runs").iterdir())
    wait_until(lambda: not (run / "secrets.env").exists())
    wait_until(lambda: json.loads((run / "status.json").read_text())["state"] == "succeeded", 60)
    box.invoke("fetch-checkpoint")
    assert list((run / "checkpoints").glob("*.fetched"))
    told = box.root / "guard-status.json"
    wait_until(lambda: "idle" in json.dumps(json.loads(told.read_text())["decision"]), 90)
    for folder in (box.root, box.project.path, box.ram):
        for file, content in contents(folder):
            assert b"planted-secret-5171" not in content, file
    subprocess.run(["pkill", "-f", f"deploy.pod.guard {box.root}"], check=False)


@needs_proc
def test_a_command_that_looks_at_a_machine_starts_its_guard_again(box: Box) -> None:
    """A host without our container does not restart a killed guard. `status`, `logs` and `fetch-checkpoint` do."""
    box.target(max_hours=50)
    box.json("train")
    told = box.root / "guard-status.json"
    try:
        for command in ("status", "logs", "fetch-checkpoint"):
            pid = json.loads(told.read_text())["pid"]
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda pid=pid: not processes.is_alive(pid))
            heartbeat = json.loads(told.read_text())["heartbeat"]
            # Pretend that the guard died a minute ago, so that the test need not wait.
            told.write_text(json.dumps({**json.loads(told.read_text()), "heartbeat": heartbeat - 60}))
            box.invoke(command)
            wait_until(lambda pid=pid: read_json(told).get("pid") not in (None, pid))
            assert read_json(told)["limits"]["max_hours"] == 50
    finally:
        os.kill(json.loads(told.read_text())["pid"], signal.SIGTERM)
