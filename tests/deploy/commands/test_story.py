"""The commands, run as a user runs them, on a real small project."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.workspace.npy import header_bytes
from tests.deploy.conftest import Project, end_tmux, wait_until
from tests.deploy.support.pretend.app.prepare import make as prepare
from tests.support.faults import Fault
from tests.support.load import under_load

needs_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux: apt-get install tmux")
SLOW_STEPS = ("--set", "train.step_s=0.3", "--set", "train.epochs=500")


def run_folder(project: Project, run_id: str) -> Path:
    return project.path / ".sniperface" / "local" / "runs" / run_id


def running(project: Project, *flags: str) -> str:
    """Start a long run. Returns its id once it has a checkpoint."""
    run_id: str = project.json("train", "--detach", *SLOW_STEPS, *flags)["run_id"]
    wait_until(lambda: (run_folder(project, run_id) / "checkpoints" / "epoch_000.json").exists())
    return run_id


def test_train_brings_a_verified_checkpoint_home(any_project: Project) -> None:
    """`train` prepares, runs, follows and downloads. Its JSON document has the documented shape."""
    project = any_project
    done = project.json("train", "--fraction", "0.5")
    checkpoint = done["checkpoint"]
    assert Path(checkpoint["path"]) == project.path / "runs" / done["run_id"] / "checkpoints" / "epoch_002.pt"
    assert Path(checkpoint["path"]).is_file()
    assert {key: done[key] for key in ("state", "fraction", "eval", "pseudo_ids")} == {
        "state": "succeeded",
        "fraction": 0.5,
        "eval": {
            "pixels": {"accuracy": 0.85, "rank1": 0.98},
            "untrained": {"accuracy": 0.8, "rank1": 0.98},
            "trained": {"accuracy": 0.9, "rank1": 0.99},
        },
        "pseudo_ids": {"count": 7, "coverage": 0.5, "purity": 0.9},
    }
    assert (checkpoint["epoch"], checkpoint["step"], len(checkpoint["sha256"])) == (2, 9, 64)
    assert done["run_id"].startswith("orl-f0.5-")
    assert done["seconds"] > 0
    home = {path.name for path in (project.path / "runs" / done["run_id"]).iterdir()}
    files = {"plan.json", "placement.json", "run.json", "config.yaml", "train.log", "status.json", "metrics.jsonl"}
    assert home == {*files, "report.html", "checkpoints"}
    assert done["report"] == str(project.path / "runs" / done["run_id"] / "report.html")
    status = project.json("status")
    assert {"epoch": 2, "step": 9, "state": "succeeded", "attempt": 1, "spend_usd": 0}.items() <= status.items()
    assert status["report"] == done["report"]
    assert [run["run_id"] for run in project.json("runs")] == [done["run_id"]]
    assert "grüße" in project.invoke("logs").stdout


def test_plain_words_where_there_is_no_terminal(project: Project) -> None:
    """Output is ASCII if the stream supports no more, with each line of the job once. A later plan uses the time."""
    project.env["PYTHONIOENCODING"] = "ascii"
    project.env["PYTHONUTF8"] = "0"
    first = project.invoke("train")
    assert "trained    0.9       0.99" in first.stdout
    assert "checkpoint: " in first.stdout
    assert re.search(r"^report: runs/orl-[^/]*/report\.html$", first.stdout, re.MULTILINE)
    assert re.search(r"^checkpoint: runs/orl-[^/]*/checkpoints/epoch_002\.pt$", first.stdout, re.MULTILINE)
    assert first.stdout.splitlines()[-1] == '88.5% of "people" & no more.'
    assert first.stdout.count("rank 0 step 9\n") == 1
    assert "measured: earlier runs" in project.invoke("train", "--dry-run").stdout
    assert (
        "no earlier run like this one here" in project.invoke("train", "--dry-run", "--set", "backbone.width=2").stdout
    )


def test_a_finished_run_tells_what_was_expected_of_it(project: Project) -> None:
    """`status` compares expected and taken time and cost of a finished run, unless it is the first of its kind."""
    project.invoke("train")
    assert project.json("status")["phases"] == []
    run_id = project.json("train", "--detach")["run_id"]
    assert project.json("status")["phases"] == [] or project.status_file(run_id)["ended"]
    project.invoke("logs", "--follow")
    parts = {part["name"]: part for part in project.json("status")["phases"]}
    assert list(parts) == ["machine", "code", "data", "training", "home"]
    assert all(part["expected_s"] is not None for part in parts.values())
    assert parts["training"]["taken_s"] > 0
    assert parts["home"]["taken_s"] is None  # its results are not downloaded
    assert {part["taken_usd"] for part in parts.values()} == {0.0, None}
    shown = project.invoke("status").stdout.splitlines()
    at = shown.index("Expected and taken")
    assert re.split(r"\s{2,}", shown[at + 1].strip()) == ["part", "expected", "taken", "expected cost", "cost"]
    assert [line.split()[0] for line in shown[at + 2 : at + 7]] == list(parts)


def test_a_dry_run_touches_nothing(project: Project) -> None:
    """A dry run does not even prepare the data. The plan says that the data will be prepared."""
    before = project.files()
    said = project.invoke("train", "--dry-run", "--fraction", "0.1").stdout
    assert "will be prepared" in said
    plan = project.json("train", "--dry-run", "--set", "train.epochs=7")
    assert (plan["epochs"], plan["processes"], plan["data"]["ready"]) == (7, min(2, os.cpu_count() or 1), False)
    assert project.files() == before
    assert not (project.path / "runs").exists()
    assert not (project.path / ".sniperface").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--fraction", "0"], ["--fraction 0", "0.01"]),
        (["--fraction", "1.5"], ["--fraction 1.5", "0.01"]),
        (["--fraction", "nan"], ["--fraction nan", "0.01"]),
        (["--fraction", "abc"], ["--fraction abc", "0.01"]),
        (["--on", "locl"], ["locl", "did you mean 'local'"]),
        (["--recipe", "magic"], ["magic", "self_supervised"]),
        (["--set", "train.epochz=3"], ["train.epochz", "train.epochs"]),
        (["--set", "train.epochs"], ["--set key=value"]),
        (["--data", "missing.npy"], ["missing.npy", "no file"]),
        (["--data", "float.npy"], ["float.npy", "float32", "uint8"]),
        (["--resume", "missing.pt"], ["missing.pt", "auto"]),
        (["--resume", "broken.pt"], ["broken.pt", "not a complete checkpoint"]),
        (["--resume", "auto", "--fraction", "2"], ["--fraction 2"]),
    ],
)
def test_bad_input_ends_at_once(project: Project, flags: list[str], words: list[str]) -> None:
    """The command ends in five seconds with one sentence and exit code 2. --json adds a document. No file changes."""
    (project.path / "float.npy").write_bytes(header_bytes("<f4", (3, 112, 112, 3)) + bytes(100))
    (project.path / "broken.pt").write_bytes(b"PK\x03\x04 cut")
    before = project.files()
    began = time.monotonic()
    done = project.invoke("train", *flags, "--json", code=2)
    assert time.monotonic() - began < under_load(5)
    assert done.stderr.count("\n") == 1
    assert [word for word in words if word not in done.stderr] == []
    assert json.loads(done.stdout)["exit_code"] == 2
    assert project.files() == before


def test_a_second_train_is_refused(project: Project) -> None:
    """The error names the first run. While that run starts, the error may name its command instead."""
    first = running(project)
    refused = project.invoke("train", code=2)
    assert first in refused.stderr
    project.invoke("stop")
    at_once = [project.start("train", "--detach", *SLOW_STEPS, "--json") for _ in range(2)]
    answers = [process.communicate(timeout=under_load(120)) for process in at_once]
    codes = [process.returncode for process in at_once]
    assert sorted(codes) == [0, 2]
    winner = json.loads(answers[codes.index(0)][0])["run_id"]
    assert winner in answers[codes.index(2)][1] or "of another command" in answers[codes.index(2)][1]
    project.invoke("stop")


def test_stop_and_resume(project: Project) -> None:
    """`stop` makes a checkpoint. `--resume auto` continues in the same folder with the same settings."""
    run_id = running(project)
    both = [project.start("stop", "--json") for _ in range(2)]  # two terminals download the same files
    stopped, again = (json.loads(process.communicate(timeout=under_load(120))[0]) for process in both)
    assert stopped == again
    assert (stopped["state"], stopped["run_id"]) == ("stopped", run_id)
    assert "_step_" in stopped["checkpoint"]["path"]
    project.env["SNIPERFACE_INVOKE"] = "python3 bootstrap.py invoke"
    assert f"  python3 bootstrap.py invoke train --resume auto --run {run_id}\n" in project.invoke("stop").stdout
    contradiction = project.invoke("train", "--resume", "auto", "--fraction", "0.5", code=2)
    assert "--fraction 0.5 contradicts" in contradiction.stderr
    contradiction = project.invoke("train", "--resume", "auto", "--set", "train.epochs=9", code=2)
    assert "train.epochs=9 contradicts" in contradiction.stderr
    another = re.search(r"or start a new run from its checkpoint: --resume (\S+)", contradiction.stderr)
    assert another, contradiction.stderr
    assert (
        "epochs 9, was 500"
        in project.invoke("train", "--resume", another[1], "--set", "train.epochs=9", "--dry-run").stdout
    )
    again = project.json("train", "--resume", "auto", "--detach", "--set", "train.epochs=500")
    assert again["run_id"] == run_id
    assert project.json("status")["attempt"] == 2
    events = lambda: (run_folder(project, run_id) / "metrics.jsonl").read_text()  # noqa: E731
    wait_until(lambda: events().count('"event": "start"') == 2)
    checkpoint = stopped["checkpoint"]
    assert f'"resumed_from": "epoch {checkpoint["epoch"]} step {checkpoint["step"]}"' in events()
    project.invoke("stop")


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX: run it on Linux or macOS")
def test_a_run_whose_folder_was_deleted_can_be_ended(project: Project) -> None:
    """The laptop does not know it any more, but it holds the machine. The advice ends it, with a checkpoint."""
    lost = running(project)
    shutil.rmtree(project.path / "runs" / lost)
    refused = project.invoke("train", code=2).stderr
    assert f"the machine is busy with run {lost}, which was not started from this folder" in refused
    words = shlex.split(refused.partition("next: invoke ")[2])
    project.invoke(*words)
    wait_until(lambda: project.status_file(lost)["state"] == "stopped")
    assert list((run_folder(project, lost) / "checkpoints").glob("*_step_*.pt"))
    assert project.json("train")["state"] == "succeeded"


def test_an_older_run_goes_on_by_its_name(project: Project) -> None:
    """`--resume auto --run ID` continues an older run. A run that succeeded cannot continue; --run needs --resume."""
    older = project.json("train", "--detach", *SLOW_STEPS)["run_id"]
    project.invoke("stop")
    newer = project.json("train")["run_id"]
    assert "--resume auto" in project.invoke("train", "--run", older, code=2).stderr
    refused = project.invoke("train", "--resume", "auto", "--run", newer, code=2)
    assert f"run {newer} is succeeded on target 'local'" in refused.stderr
    assert project.json("train", "--resume", "auto", "--run", older, "--detach")["run_id"] == older
    project.invoke("stop", "--run", older)


def test_nothing_to_resume_is_wrong_use(project: Project) -> None:
    """`--resume auto` starts no new run, neither on a new target nor after a run that succeeded."""
    for _ in range(2):
        refused = project.invoke("train", "--resume", "auto", code=2)
        assert "target 'local' has no run that was stopped, failed, lost or expired" in refused.stderr
        assert "leave --resume out to start a new run" in refused.stderr
        project.invoke("train")
    assert [run["attempt"] for run in project.json("runs")] == [1, 1]


def test_a_run_starts_from_a_checkpoint_of_the_users(project: Project) -> None:
    """The checkpoint is checked first, then copied into the run folder."""
    first = project.json("train")
    own = project.path / "old one.pt"
    project.invoke("fetch-checkpoint", "--which", "1", "--to", str(own))
    misfit = project.invoke("train", "--resume", "old one.pt", "--set", "backbone.width=2", code=2)
    assert "old one.pt does not fit" in misfit.stderr
    assert "backbone.width=1, here it is 2" in misfit.stderr
    longer = project.invoke("train", "--resume", "old one.pt", "--set", "train.epochs=9", "--dry-run")
    assert "train.epochs 9, was 3" in longer.stdout
    second = project.json("train", "--resume", "old one.pt")
    assert second["run_id"] != first["run_id"]
    folder = run_folder(project, second["run_id"])
    assert (folder / "resume_from" / "old one.pt").read_bytes() == own.read_bytes()
    assert '"resumed_from": "epoch 2 step 6"' in (folder / "metrics.jsonl").read_text()
    own.write_bytes(own.read_bytes()[:-30])
    assert "not a complete checkpoint" in project.invoke("train", "--resume", "old one.pt", code=2).stderr


def test_fetching_any_checkpoint(project: Project) -> None:
    """`--which` takes latest, best or a number. A checkpoint of less data never replaces one of more data."""
    full = project.json("train")
    for which, epoch in (("latest", 2), ("best", 0), ("1", 1)):
        fetched = project.json("fetch-checkpoint", "--which", which)
        assert (fetched["epoch"], Path(fetched["path"]).name) == (epoch, f"epoch_00{epoch}.pt")
    assert "there are 0, 1, 2" in project.invoke("fetch-checkpoint", "--which", "9", code=2).stderr
    model = project.path / "model.pt"
    project.invoke("fetch-checkpoint", "--to", str(model))
    before = model.read_bytes()
    project.json("train", "--fraction", "0.1")
    assert "give another --to" in project.invoke("fetch-checkpoint", "--to", str(model), code=2).stderr
    assert model.read_bytes() == before
    project.invoke("fetch-checkpoint", "--run", full["run_id"], "--to", str(model))


def test_mining_with_any_checkpoint_of_a_run(project: Project) -> None:
    """The app gets the path of the checkpoint, and an output folder in the laptop's folder of the run."""
    run_id = project.json("train")["run_id"]
    words = json.loads(project.invoke("mine", "--which", "1", "--set", "mining.method=parity").stdout.splitlines()[-1])
    given = dict(word.split("=", 1) for word in words)
    assert given.keys() == {"checkpoint", "out", "mining.method"}
    assert Path(given["checkpoint"]).is_file()
    assert Path(given["checkpoint"]).name == "epoch_001.pt"
    assert Path(given["out"]) == project.path / "runs" / run_id / "mining" / "epoch_001"
    assert "there are 0, 1, 2" in project.invoke("mine", "--which", "9", code=2).stderr


def test_labels_to_learn_are_looked_for_before_anything_else(project: Project) -> None:
    """Missing labels are an error even if the data is not prepared yet. The plan contains the labels."""
    said = project.invoke("train", "--recipe", "supervised", "--labels", "nowhere.npy", "--dry-run", code=2).stderr
    assert "--labels" in said
    assert "nowhere.npy is not a file" in said
    (project.path / "own.npy").write_bytes(b"looked at when the images are there")
    words = project.json("train", "--recipe", "supervised", "--labels", "own.npy", "--dry-run")["argv"]
    assert [word for word in words if word.startswith("data.train_labels_path=") and word.endswith("own.npy'")]


def test_measuring_and_exporting_checkpoints_of_a_run(project: Project) -> None:
    """`evaluate` measures all checkpoints of a run, one of them, or files of no run. `export` exports the latest."""
    run_id = project.json("train")["run_id"]

    def given(*words: str) -> dict[str, str]:
        told = json.loads(project.invoke(*words).stdout.splitlines()[-1])
        return dict(word.split("=", 1) for word in told)

    home = project.path / "runs" / run_id
    every = given("evaluate", "--sets", "lfw.bin")
    assert Path(every["weights"]).name == "*.pt"
    assert len(list(Path(every["weights"]).parent.glob("*.pt"))) == 3
    assert (every["sets"], every["out"]) == ("lfw.bin", str(home / "evaluation"))
    assert Path(given("evaluate", "--which", "1")["weights"]).name == "epoch_001.pt"
    assert given("evaluate", "--weights", "a/*.pth", "--set", "backbone=iresnet50") == {
        "weights": "a/*.pth", "backbone": "iresnet50",
    }  # fmt: skip
    exported = given("export", "--set", "opset=17")
    assert Path(exported["checkpoint"]).name == "epoch_002.pt"
    assert (exported["out"], exported["opset"]) == (str(home / "epoch_002.onnx"), "17")
    assert "evaluation" not in exported
    note = json.loads((home / "checkpoints" / "epoch_002.json").read_text())
    results = home / "evaluation" / "eval.json"
    results.parent.mkdir()
    results.write_text(json.dumps({"weights": [{"sha256": note["sha256"], "sets": {}}]}))
    assert given("export")["evaluation"] == str(results)
    assert "evaluation" not in given("export", "--which", "1")
    assert "evaluation" not in given("export", "--out", "backbone.pt")
    assert given("export", "--set", "evaluation=x.json")["evaluation"] == "x.json"


def test_a_failed_job_is_a_failed_command(project: Project) -> None:
    """The error shows the last lines of the log. Existing checkpoints are downloaded all the same."""
    done = project.invoke("train", "--set", "train.manner=fails", "--json", code=1)
    document = json.loads(done.stdout)
    assert (document["state"], document["checkpoint"]["epoch"]) == ("failed", 0)
    assert "the loss is not a number" in done.stderr
    assert f"invoke train --resume auto --run {document['run_id']}" in done.stderr
    watched = project.invoke("watch", "--json", code=1)
    assert (json.loads(watched.stdout)["state"], "the loss is not a number" in watched.stderr) == ("failed", False)
    assert f"error: run {document['run_id']} failed: the job ended with exit code 1" in watched.stderr


def test_a_job_may_say_that_its_input_was_wrong(project: Project) -> None:
    """The error has the sentence of the job, and says it once. So does `stop` of the failed run."""
    done = project.invoke("train", "--set", "train.manner=wrong_use", code=1)
    assert done.stderr.count("the value does not work; give another") == 1
    assert done.stdout.count("the value does not work") == 1  # in the log, which a terminal does not show
    assert project.invoke("stop").stdout.count("the value does not work; give another") == 1
    assert project.json("stop")["verdict"] == "The run failed: the value does not work; give another."


def test_a_failure_on_the_way_leaves_a_truthful_record(project: Project, tmp_path: Path) -> None:
    """An unfit environment fails the run, with the reason and the fix. The target is free afterwards."""
    without = tmp_path / "without torch"  # hides torch, which may be installed beside these tests
    without.mkdir()
    (without / "sitecustomize.py").write_text("import sys\nsys.modules['torch'] = None\n")
    project.env["PYTHONPATH"] = str(without)
    done = project.invoke("train", code=1)
    assert "torch is not installed" in done.stderr
    assert "python bootstrap.py" in done.stderr
    status = project.json("status")
    assert status["state"] == "failed"
    assert "torch is not installed" in status["reason"]
    assert "torch is not installed" in project.invoke("deploy", code=1).stderr


def test_a_machine_that_cannot_be_had_has_its_own_exit_code(project: Project) -> None:
    """The exit code is 3, and the run is failed instead of acquiring for ever."""
    (project.path / "blocked").write_text("a file, not a folder")
    project.env["SNIPERFACE_ROOT"] = "blocked"
    assert "cannot be written" in project.invoke("train", code=3).stderr
    assert project.json("status")["state"] == "failed"


def test_a_killed_launch_does_not_block_the_target(project: Project) -> None:
    """A run whose command died before the job ran is failed, and the next one may start."""
    folder = project.path / "runs" / "orl-20260101-000000-dead"
    done = project.json("train")
    folder.mkdir()
    record = json.loads((project.path / "runs" / done["run_id"] / "run.json").read_text())
    stale = {
        **record,
        "run_id": folder.name,
        "state": "preparing",
        "run_dir": str(folder),
        "created": "2099-01-01T00:00:00",
    }
    (folder / "run.json").write_text(json.dumps(stale))
    status = project.json("status")
    assert (status["run_id"], status["state"]) == (folder.name, "failed")


@pytest.mark.slow
def test_a_killed_supervisor_is_lost_and_can_be_resumed(project: Project, fault: Fault) -> None:
    """The status is correct within ten seconds, and the last checkpoint is intact."""
    run_id = running(project)
    os.kill(project.status_file(run_id)["pid"], signal.SIGKILL)
    fault.strikes()
    fault.told(lambda: project.json("status")["state"] == "lost")
    assert project.json("fetch-checkpoint")["step"] > 0
    fault.checkpoints(run_folder(project, run_id), project.path / "runs" / run_id)
    fault.machines(project.json("ps"), [])
    assert "lost" in project.invoke("train", "--resume", "auto", "--detach").stdout
    assert project.json("status")["attempt"] == 2
    project.invoke("stop")


def test_staged_training(project: Project, tmp_path: Path) -> None:
    """Only the fraction is copied; the app reads the copy."""
    project.env["SNIPERFACE_STAGE_TO"] = str(tmp_path / "ram")
    run_id = project.json("train", "--fraction", "0.5")["run_id"]
    assert (tmp_path / "ram" / "orl-f0.5" / "images.npy").is_file()
    assert str(tmp_path / "ram") in (run_folder(project, run_id) / "train.log").read_text(encoding="utf-8")


def test_deploy_is_idempotent(project: Project) -> None:
    """The second call finds that everything exists."""
    first, second = project.json("deploy"), project.json("deploy")
    assert first == {**second, "machine": first["machine"]}


def test_prepare_names_the_file_by_what_it_holds(project: Project) -> None:
    """--encoded writes images.jpegs into the folder. An output of the other kind is refused."""
    project.invoke("prepare", "--out", "files", "--encoded")
    assert [file.name for file in (project.path / "files").glob("images.*")] == ["images.jpegs"]
    for words in (["--encoded", "--out", "a/images.npy"], ["--out", "a/images.jpegs"]):
        refused = project.invoke("prepare", *words, code=2).stderr
        assert f"--out {words[-1]} does not fit" in refused
        assert not (project.path / "a").exists()


def test_images_are_kept_for_measuring(project: Project) -> None:
    """`prepare` passes its flags to the app."""
    project.invoke("prepare", "--out", "mine", "--held-out", "5")
    assert json.loads((project.path / "mine" / "manifest.json").read_text())["held_out_rows"] == 5


def test_own_data_and_a_relative_path(project: Project) -> None:
    """The run is named after the data set."""
    prepare(project.path / "my faces" / "images.npy", name="my faces")
    done = project.json("train", "--data", "my faces")
    assert done["run_id"].startswith("my_faces-2")


def without_tmux(project: Project, folder: Path) -> None:
    folder.mkdir()
    for name in ("git", "python3"):
        found = shutil.which(name)
        assert found
        (folder / name).symlink_to(found)
    project.env["PATH"] = str(folder)


@pytest.mark.skipif(os.name == "nt", reason="needs symbolic links: run on Linux or macOS")
def test_without_tmux_the_job_is_detached(project: Project, tmp_path: Path) -> None:
    """Everything works except `attach`, which says what to install."""
    without_tmux(project, tmp_path / "bin")
    run_id = running(project)
    refused = project.invoke("attach", code=1)
    assert "apt-get install tmux" in refused.stderr
    assert f"invoke logs --follow --run {run_id}" in refused.stderr
    assert "step 1" in project.invoke("logs").stdout
    assert project.json("stop")["state"] == "stopped"


@needs_tmux
def test_a_tmux_that_does_not_start_keeps_no_job_from_training(project: Project, tmp_path: Path) -> None:
    """tmux refuses a folder for its sockets that others may read. A job needs it for `attach` alone."""
    for folder in (tmp_path / "sockets", tmp_path / "sockets" / f"tmux-{os.getuid()}"):
        folder.mkdir()
        folder.chmod(0o777)
    project.env["TMUX_TMPDIR"] = str(tmp_path / "sockets")
    running(project)
    assert "did not start on its machine" in project.invoke("attach", code=1).stderr
    assert project.json("stop")["state"] == "stopped"


@pytest.fixture
def terminal(project: Project) -> Callable[..., Any]:
    """A real terminal: a private tmux window that the test can type into and read."""
    socket = f"{project.socket}-screen"

    def tmux(*argv: str) -> str:
        return subprocess.run(
            ["tmux", "-L", socket, "-f", os.devnull, *argv], check=True, capture_output=True, text=True,
            cwd=project.path, env={**project.environment, "LC_ALL": "C.UTF-8"},
        ).stdout  # fmt: skip

    yield tmux
    end_tmux(socket)


@needs_tmux
def test_ctrl_c_detaches_and_attach_shows_the_job(project: Project, terminal: Callable[..., str]) -> None:
    """In a terminal, Ctrl-C leaves the progress display and the job continues. `attach` shows the job read-only."""
    look = lambda: terminal("capture-pane", "-p", "-t", "t")  # noqa: E731
    # The window's own shell keeps the screen after each command.
    terminal("new-session", "-d", "-s", "t", "-x", "150", "-y", "60", "PS1='ready> ' /bin/sh")
    invoke = f"'{sys.executable}' -m invoke"
    terminal("send-keys", "-t", "t", f"{invoke} train {' '.join(SLOW_STEPS)}", "Enter")
    wait_until(lambda: "img/s" in look())
    terminal("send-keys", "-t", "t", "C-c")
    wait_until(lambda: look().rstrip().endswith("ready>"))  # the next keys are then the shell's
    assert "continues" in look()
    assert "invoke stop" in look()
    terminal("send-keys", "-t", "t", f"clear; {invoke} attach", "Enter")
    wait_until(lambda: "rank 1 step" in look())
    terminal("send-keys", "-t", "t", "C-c")  # attached read-only: this must not reach the job
    wait_until(lambda: terminal("send-keys", "-t", "t", "C-b", "d") or "detached" in look())
    assert project.json("status")["state"] == "running"
    assert project.json("stop")["state"] == "stopped"


@needs_tmux
def test_tmux_is_killed_and_the_job_goes_on(project: Project, fault: Fault) -> None:
    """After `kill -9` of tmux the job continues without a terminal, and `attach` says so. The next run has one."""
    run_id = running(project)
    pid = subprocess.run(
        ["tmux", "-L", project.socket, "display-message", "-p", "#{pid}"], check=True, capture_output=True, text=True
    ).stdout
    os.kill(int(pid), signal.SIGKILL)
    fault.strikes()
    struck, log = time.time(), run_folder(project, run_id) / "train.log"
    seen = log.stat().st_size
    fault.told(lambda: project.json("status")["state"] == "running")
    wait_until(lambda: project.status_file(run_id)["heartbeat"] > struck + 2 and log.stat().st_size > seen)
    refused = project.invoke("attach", code=1)
    assert f"run {run_id} runs without a terminal" in refused.stderr
    assert f"invoke logs --follow --run {run_id}" in refused.stderr
    assert project.json("stop")["state"] == "stopped"
    fault.checkpoints(run_folder(project, run_id), project.path / "runs" / run_id)
    fault.machines(project.json("ps"), [])
    second = running(project)
    record = json.loads((project.path / "runs" / second / "run.json").read_text(encoding="utf-8"))
    assert record["session"] == "tmux"
    project.invoke("stop")


@needs_tmux
def test_following_a_log_until_the_end(project: Project) -> None:
    """No line is lost or doubled, and the command ends with the job."""
    run_id = running(project)
    follower = project.start("logs", "--follow")
    project.invoke("stop")
    text, _ = follower.communicate(timeout=under_load(120))
    assert text == (run_folder(project, run_id) / "train.log").read_text(encoding="utf-8")


def test_doctor_names_fixes(project: Project) -> None:
    """Every finding that is not ok has a fix."""
    findings = json.loads(
        subprocess.run(
            [sys.executable, "-m", "invoke", "doctor", "--json"], cwd=project.path, env=project.environment,
            capture_output=True, check=False, text=True,
        ).stdout
    )  # fmt: skip
    assert {"python", "git", "tmux", "disk", "configuration"} <= {finding["what"] for finding in findings}
    assert all(finding["fix"] for finding in findings if finding["level"] != "ok")


def test_benchmarks_run_one_after_the_other(project: Project) -> None:
    """A claim that does not hold gives exit code 1, after all benchmarks ran."""
    folder = project.path / "benchmarks"
    folder.mkdir()
    (folder / "a.py").write_text("import sys; print('a', sys.argv[1:]); sys.exit(1)")
    (folder / "b.py").write_text("print('b ran')")
    done = project.invoke("bench", "--quick", code=1)
    assert "a ['--quick']" in done.stdout
    assert "b ran" in done.stdout


def test_the_menu_is_quick_and_needs_little(project: Project) -> None:
    """The list shows the commands, and the command line imports no large package for it."""
    listing = project.invoke("--list").stdout
    commands = [line.split()[0] for line in listing.splitlines() if line.startswith("  ") and line[2] != " "]
    assert set(commands) >= {
        "train",
        "deploy",
        "attach",
        "logs",
        "status",
        "runs",
        "stop",
        "fetch-checkpoint",
        "doctor",
    }
    ask = "import sys, tasks; print([name for name in ('torch', 'numpy', 'rich', 'omegaconf') if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", ask], cwd=project.path, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
