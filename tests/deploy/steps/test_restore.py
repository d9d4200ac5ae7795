"""A run whose machine is lost resumes from the newest intact copy, wherever it is: real processes, real SSH."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.pod.backup import restore, storage, sync
from deploy.pod.base import metrics, processes
from deploy.pod.base.folder import RunFolder, read_json, write_json
from deploy.runs import records
from deploy.shell import LocalShell
from deploy.specs.machine import Machine
from deploy.specs.settings import Settings, Target
from deploy.steps.restore import Kept
from deploy.ui.screen import Screen
from tests.deploy.commands.test_remote import Box, make_box
from tests.deploy.conftest import SOURCE, Project, paced, wait_until
from tests.deploy.support.servers import SSHD, asyncssh_server, openssh
from tests.deploy.support.supervised import SAVE, TELL, Supervised
from tests.support.files import below, contents
from tests.support.load import under_load

Make = Callable[..., Supervised]
EPOCHS = 12


# The process on the machine


@pytest.fixture(params=["folder", "address"])
def sync_to(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Each kind of storage: a folder, and an address of fsspec."""
    path = tmp_path / "kept è copies"
    return str(path) if request.param == "folder" else f"file://{path.as_posix()}"


def asked(run: RunFolder, sync_to: str, *words: str, note: dict[str, Any] | None = None, code: int = 0) -> Any:
    """Run the restore process and return its answer. A folder counts as a volume."""
    volume = [] if "://" in sync_to else ["--volume", sync_to]
    done = subprocess.run(
        [sys.executable, "-m", "deploy.pod.backup.restore", str(run.path), sync_to, *volume, *words],
        cwd=SOURCE, capture_output=True, text=True, check=False, timeout=under_load(60), input=json.dumps(note or {}),
    )  # fmt: skip
    assert (done.returncode, len(done.stdout.splitlines())) == (code, 1), done.stdout + done.stderr
    return json.loads(done.stdout) if code == 0 else done.stdout


def kept(make: Make, sync_to: str, script: str) -> Supervised:
    """Return a finished run whose copy is in `sync_to`."""
    run = make("one")
    run.start(SAVE + script + '; tell(event="end", reason="done")').end()
    sync.sync(run.folder, storage.of(sync_to, run.path, sync_to if "://" not in sync_to else None), sync_to)
    return run


def test_a_copy_comes_back_as_it_was(make: Make, sync_to: str, tmp_path: Path) -> None:
    """Checkpoint, JSON, `latest` and log return, with a mark that they are synced. A repetition changes nothing."""
    run = kept(make, sync_to, 'save(1); save(2); print("words")')
    elsewhere = RunFolder(tmp_path / "elsewhere" / "one")
    seen = asked(elsewhere, sync_to)
    (note,) = seen["checkpoints"]
    assert (note["file"], seen["damaged"], seen["log_bytes"]) == ("epoch_002.pt", [], len(run.log))
    for _ in range(2):
        assert asked(elsewhere, sync_to, "--take", "epoch_002.pt") == note
        there = {path.name: path.read_bytes() for path in Path(elsewhere.checkpoints).iterdir()}
        assert there.keys() == {"epoch_002.pt", "epoch_002.json", "epoch_002.pt.synced", "latest"}
        assert (there["epoch_002.pt"], there["latest"]) == (b"weights 2", b"epoch_002.pt")
        assert json.loads(there["epoch_002.json"]) == note
    assert asked(elsewhere, sync_to, "--record", note=note)["reaches"]
    assert Path(elsewhere.log).read_bytes() == run.log


def test_what_is_not_whole_is_never_put_in_place(make: Make, sync_to: str, tmp_path: Path) -> None:
    """Other bytes, too few bytes or an invalid JSON give one sentence each, and no file."""
    kept(make, sync_to, "save(1)")
    place = storage.of(sync_to, tmp_path, str(tmp_path))
    place.put(io.BytesIO(b"weights 9"), "one/checkpoints/epoch_001.pt")
    place.put(io.BytesIO(b"cut sho"), "one/checkpoints/epoch_002.pt")
    note = {"file": "epoch_002.pt", "epoch": 2, "step": 2, "sha256": "0" * 64, "bytes": 9}
    place.put(io.BytesIO(json.dumps(note).encode()), "one/checkpoints/epoch_002.json")
    place.put(io.BytesIO(b'{"file": "../../escape.pt"}'), "one/checkpoints/epoch_003.json")
    elsewhere = RunFolder(tmp_path / "elsewhere" / "one")
    seen = asked(elsewhere, sync_to)
    assert [each["file"] for each in seen["checkpoints"]] == ["epoch_001.pt"]
    assert seen["damaged"] == ["epoch_002.pt has 7 bytes instead of 9", "epoch_003.json is incomplete"]
    assert "its SHA-256 differs" in asked(elsewhere, sync_to, "--take", "epoch_001.pt", code=1)
    assert list(Path(elsewhere.checkpoints).iterdir()) == []


def test_nothing_is_there_or_nothing_can_be_there(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "one")
    assert asked(run, f"file://{tmp_path}/nothing")["checkpoints"] == []
    assert "nothing://x" in asked(run, "nothing://x", code=1)
    done = subprocess.run(
        [sys.executable, "-m", "deploy.pod.backup.restore", str(run.path), str(tmp_path / "there")],
        cwd=SOURCE, capture_output=True, text=True, check=False, timeout=under_load(60),
    )  # fmt: skip
    assert "is the volume mounted there?" in done.stdout


@pytest.mark.skipif(os.name == "nt", reason="needs a FIFO: run on Linux or macOS")
def test_a_volume_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The waiting process is killed, and the laptop gets the reason."""
    status = tmp_path / "volume" / "one" / "status.json"
    status.parent.mkdir(parents=True)
    os.mkfifo(status)  # opening it waits for a writer
    target = Target("local", "local", "root", sync_to=f"file://{tmp_path}/volume")
    machine = Machine("here", tmp_path, sys.executable)
    run = RunFolder(tmp_path / "runs" / "one")
    monkeypatch.setattr("deploy.steps.restore.LOOK_LIMIT_S", 3.0)
    seen = Kept(Settings(tmp_path, target), machine, LocalShell(), SOURCE, run).look(Screen())
    assert "hangs or is too slow" in str(seen.why_not)
    assert processes_with("deploy.pod.backup.restore", str(run.path)) == []


def test_of_several_machines_each_has_its_own_copy(make: Make, tmp_path: Path) -> None:
    """Log and status of another machine do not replace those of rank 0, which has the checkpoint."""
    first, second = make("one", tmp_path / "first"), make("one", tmp_path / "second")
    place = storage.Folder(tmp_path / "volume")
    first.start(SAVE + 'save(1); print("rank 0"); tell(event="end", reason="done")').end()
    second.start(TELL + 'print("rank 1"); tell(event="end", reason="done")').end()
    for machine, rank in ((first, 0), (second, 1)):
        write_json(Path(machine.folder.plan), {**read_json(Path(machine.folder.plan)), "place": {"rank": rank}})
        sync.sync(machine.folder, place, "volume")
    assert (tmp_path / "volume" / "one" / "train.log").read_text() == "rank 0\n"
    assert (tmp_path / "volume" / "one" / "rank-1" / "train.log").read_text() == "rank 1\n"
    assert [note["step"] for note in restore.look(first.folder, place)["checkpoints"]] == [1]


# Events and logs of a restored run


def lines(*events: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def step(number: int) -> dict[str, Any]:
    return {"event": "step", "step": number}


MADE = {"event": "checkpoint", "step": 2, "sha256": "a"}
NOTE = {"sha256": "a", "step": 2, "epoch": 0}


@pytest.mark.parametrize(
    ("told", "stays", "reaches"),
    [
        ([step(1), step(2), MADE, step(3)], 3, True),  # newer than the checkpoint: step 3 will be repeated
        ([step(1), step(2), MADE], 3, True),
        ([step(1), step(2), MADE, {"event": "end", "step": 2}], 4, True),  # an end is kept: it is not repeated
        ([step(1), step(2), MADE, {"event": "mining", "step": 2}], 3, True),  # will be repeated
        ([step(1), step(2), step(3), step(4)], 2, True),  # read just before the checkpoint's event was written
        ([step(1)], 1, False),  # older than the checkpoint: a gap
        ([], 0, False),
    ],
)
def test_events_end_where_the_run_goes_on(told: list[dict[str, Any]], stays: int, reaches: bool) -> None:
    assert metrics.up_to(lines(*told), NOTE) == (lines(*told[:stays]), reaches)
    assert metrics.up_to(lines(*told) + b'{"half": ', NOTE) == (lines(*told[:stays]), reaches)


def test_a_log_is_joined_where_beginning_and_end_meet() -> None:
    """Each byte appears once, so byte offsets stay valid. A gap is marked."""
    log = b"".join(b"step %d\n" % number for number in range(2000))
    assert restore.joined(log[:9000], log[4000:]) == log
    assert restore.joined(log, log[4000:9000]) == log
    assert restore.joined(b"", log[4000:]).startswith(restore.GAP)
    holed = restore.joined(log[:3000], log[9000:])
    assert holed[:3000] == log[:3000]
    assert holed.count(restore.GAP) == 1
    assert holed.endswith(log[-5000:])


def test_a_long_log_comes_back_whole(make: Make, tmp_path: Path) -> None:
    """The sync copied the log whole while it was short, then only its end."""
    run, place = make("one"), storage.Folder(tmp_path / "volume")
    run.start(SAVE + 'save(1); print("first words"); tell(event="end", reason="done")').end()
    sync.sync(run.folder, place, "volume")
    with open(run.folder.log, "ab") as log:
        log.writelines(b"line %d\n" % number for number in range(sync.LOG_BYTES // 16))
        log.flush()
        sync.sync(run.folder, place, "volume")  # still copied whole
        log.writelines(b"later line %d\n" % number for number in range(sync.LOG_BYTES // 32))
    sync.sync(run.folder, place, "volume")
    elsewhere = RunFolder(tmp_path / "elsewhere" / "one")
    note = read_json(run.path / "checkpoints" / "epoch_001.json")
    Path(elsewhere.path).mkdir(parents=True)
    restore.record(elsewhere, place, note)
    assert len(run.log) > sync.LOG_BYTES
    assert Path(elsewhere.log).read_bytes() == run.log


def test_metrics_are_read_after_the_choice_of_a_checkpoint(make: Make, tmp_path: Path) -> None:
    """Otherwise the copy could lack events from before the checkpoint."""
    run = make("one")
    run.start(SAVE + 'save(1); tell(event="end", reason="done")').end()

    class Late(storage.Folder):
        """Storage whose first upload lasts until the run has made another checkpoint."""

        def put(self, source: Any, name: str) -> str:
            if name.endswith("plan.json"):
                subprocess.run([sys.executable, "-c", TELL + SAVE + "save(2)"], cwd=run.path, check=True)
            return super().put(source, name)

    told = sync.sync(run.folder, Late(tmp_path / "volume"), "volume")
    note = read_json(run.path / "checkpoints" / told["checkpoint"].replace(".pt", ".json"))
    assert metrics.up_to((tmp_path / "volume" / "one" / "metrics.jsonl").read_bytes(), note)[1]


# Decisions of the laptop


@pytest.fixture
def box(project: Project, tmp_path: Path) -> Iterator[Box]:
    yield from make_box(project, tmp_path, openssh if SSHD else asyncssh_server)
    for status in [path for path in below(tmp_path) if path.name == "guard-status.json"]:
        processes.kill_tree(read_json(status)["pid"])


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    return tmp_path / "a bucket"


def begin(box: Box, epochs: int = EPOCHS) -> Path:
    """Start a run that takes some seconds, and return its folder on the machine."""
    run_id = box.json("train", "--detach", *paced(0.2, epochs))["run_id"]
    return box.root / "runs" / str(run_id)


def epochs(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("checkpoints/epoch_*.json"))


def newer(run: Path) -> None:
    before = epochs(run)
    wait_until(lambda: len(epochs(run)) > len(before), 60)


def copy(run: Path, bucket: Path) -> str:
    """Sync the run as the guard does, and return the name of the copied checkpoint."""
    words = [sys.executable, "-m", "deploy.pod.backup.sync", str(run), f"file://{bucket}"]
    done = subprocess.run(words, cwd=SOURCE, capture_output=True, text=True, check=True, timeout=under_load(60))
    return str(json.loads(done.stdout)["checkpoint"])


def lose(box: Box, run: Path, tmp_path: Path) -> None:
    """Destroy the machine: kill its processes, and move its folder away."""
    for told in (box.root / "guard-status.json", run / "status.json"):
        if told.exists():
            processes.kill_tree(read_json(told)["pid"])
    box.root.rename(tmp_path / "burnt")
    (tmp_path / "burnt" / "guard-status.json").unlink(missing_ok=True)


def assert_each_step_is_told_once(run: Path, epochs: int = EPOCHS) -> None:
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["event"] == "step"] == list(range(1, 3 * epochs + 1))


@pytest.mark.slow
def test_what_the_laptop_never_had_comes_from_the_bucket(box: Box, bucket: Path, tmp_path: Path) -> None:
    """The guard made the copies. A new run is refused; the lost run resumes without a gap in its curve."""
    box.target(sync_to=f"file://{bucket}")
    run = begin(box, epochs=40)
    there = wait_until(lambda: epochs(bucket / run.name), 60)
    lose(box, run, tmp_path)
    status = box.json("status")
    assert (status["state"], status["saved"]) == (
        "lost", {"machine": None, "home": None, "sync_to": f"file://{bucket}/{run.name}"},
    )  # fmt: skip
    assert f"saved: no checkpoint on this laptop, copies in the bucket file://{bucket}" in box.invoke("status").stdout
    (listed,) = json.loads(box.project.invoke("runs", "--json").stdout)
    assert "saved: no checkpoint on this laptop, copies in the bucket" in listed["reason"]
    refused = box.invoke("train", code=2).stderr
    for words in (f"run {run.name} was lost", "copies in the bucket", "--resume none", "train --resume auto --on box"):
        assert words in refused
    said = box.invoke("train", "--resume", "auto").stdout
    assert f"restored {there[-1]}.pt" in said
    assert f"from the bucket file://{bucket}" in said
    assert_each_step_is_told_once(run, epochs=40)
    assert box.json("status")["state"] == "succeeded"
    home = box.project.path / "runs" / run.name
    assert (home / "train.log").read_bytes() == (run / "train.log").read_bytes()
    assert b"rank 0 step 1\n" in (home / "train.log").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("newest", ["laptop", "bucket", "damaged"])
def test_the_newest_whole_copy_wins(box: Box, bucket: Path, tmp_path: Path, newest: str) -> None:
    """The newest copy is on the laptop or in the bucket. A damaged copy is skipped with one sentence."""
    run = begin(box)
    newer(run)
    if newest == "laptop":
        copy(run, bucket)
        newer(run)
    file = Path(box.json("fetch-checkpoint")["path"]).name
    if newest != "laptop":
        newer(run)
        there = copy(run, bucket)
    lose(box, run, tmp_path)
    if newest == "bucket":
        file = there
    if newest == "damaged":
        weights = bucket / run.name / "checkpoints" / there
        weights.write_bytes(weights.read_bytes()[::-1])
    box.target(sync_to=f"file://{bucket}")
    said = box.invoke("train", "--resume", "auto").stdout
    where = f"the bucket file://{bucket}" if newest == "bucket" else "this laptop"
    (restored,) = [line for line in said.splitlines() if line.startswith("restored")]
    assert restored.startswith(f"restored {file} (epoch ")
    assert restored.endswith(f" from {where}")
    passed = [line for line in said.splitlines() if line.startswith("skipped")]
    assert len(passed) == (newest == "damaged")
    assert all(there in line and "its SHA-256 differs" in line for line in passed)
    assert_each_step_is_told_once(run)


@pytest.mark.slow
def test_copies_that_cannot_be_read(box: Box, tmp_path: Path) -> None:
    """Other copies are used. Without any, the command fails and starts no new run."""
    run = begin(box)
    newer(run)
    box.invoke("fetch-checkpoint")
    lose(box, run, tmp_path)
    box.target(sync_to="nothing://there")
    home = box.project.path / "runs" / run.name / "checkpoints"
    home.rename(home.with_name("away"))
    refused = box.invoke("train", "--resume", "auto", code=1).stderr
    assert "nothing of run" in refused
    assert "nothing://there is not an address that fsspec knows" in refused
    home.with_name("away").rename(home)
    said = box.invoke("train", "--resume", "auto").stdout
    assert "the bucket nothing://there cannot be read and is skipped" in said
    assert "from this laptop" in said
    assert_each_step_is_told_once(run)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc: run on Linux")
def test_credentials_are_in_one_process_only(box: Box, bucket: Path, tmp_path: Path) -> None:
    """On the machine, only the process that reads the bucket has the credentials; no command line does.

    The test blocks this process to inspect it.
    """
    run = begin(box)
    newer(run)
    copy(run, bucket)
    box.invoke("fetch-checkpoint")
    lose(box, run, tmp_path)
    box.target(sync_to=f"file://{bucket}", secrets=["BOX_TOKEN"])
    box.project.env["BOX_TOKEN"] = secret = "planted-secret-7713"
    pipe = bucket / run.name / "status.json"
    pipe.unlink()
    os.mkfifo(pipe)
    going = box.project.start("train", "--on", "box", "--resume", "auto")
    [reader] = wait_until(lambda: processes_with("deploy.pod.backup.restore", str(box.root)), 60)
    mine = {going.pid, *processes.descendants(going.pid)}
    assert [pid for pid in every_process() if secret in read(f"/proc/{pid}/environ") and pid not in mine] == [reader]
    assert [pid for pid in every_process() if secret in read(f"/proc/{pid}/cmdline")] == []
    os.close(os.open(pipe, os.O_WRONLY))  # the reader continues, and finds that it is not a file
    said, complaint = going.communicate(timeout=under_load(120))
    assert going.returncode == 0, complaint
    assert "cannot be read and is skipped" in said
    assert "from this laptop" in said
    for file, content in [*contents(box.root), *contents(box.project.path / "runs")]:
        assert secret.encode() not in content, file


def every_process() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]


def processes_with(*words: str) -> list[int]:
    return [pid for pid in every_process() if all(word in read(f"/proc/{pid}/cmdline") for word in words)]


def read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


# The cost limit of a run, over all attempts


def spend(box: Box, run: Path, **told: float) -> None:
    """Record these costs per machine in the run's record."""
    place = box.project.path / "runs" / run.name / "run.json"
    place.write_text(json.dumps({**read_json(place), "spend": told}), encoding="utf-8")


@pytest.mark.slow
def test_a_watched_run_costs_no_more_than_it_may(box: Box, tmp_path: Path) -> None:
    """The sum of its machines counts, by default against the target's max_usd.

    Below the limit the run continues, and the costs of earlier machines stay recorded.
    """
    box.target(max_usd=7)
    run = begin(box)
    newer(run)
    box.invoke("fetch-checkpoint")
    lose(box, run, tmp_path)
    spend(box, run, first=4.5, second=2.75)
    for flags, allowed in (((), 7), (("--max-usd", "5"), 5)):
        said = box.invoke("watch", *flags).stdout
        assert f"it has cost $7.25 and reached max_usd {allowed}: it is not continued" in said
        assert "continuing on another machine" not in said
    assert not box.root.exists()
    assert box.json("status")["spend_usd"] == 7.25
    assert "continuing on another machine" in box.invoke("watch", "--max-usd", "8").stdout
    assert (box.json("status")["state"], box.json("status")["spend_usd"]) == ("succeeded", 7.25)


def test_a_running_run_is_stopped_at_what_it_may_cost(box: Box) -> None:
    """The costs of earlier attempts on other machines count, too."""
    run = begin(box, epochs=200)
    spend(box, run, first=4.5)
    newer(run)
    said = box.invoke("watch", "--max-usd", "4").stdout
    assert "this run has cost $4.50 and reached max_usd 4" in said
    assert box.json("status")["state"] == "stopped"


def test_what_a_machine_has_cost_is_counted_once(tmp_path: Path) -> None:
    """Each report of a machine is its total so far. Machines add up, and a lower report is ignored."""
    record = records.Record("r", "x", "x", "running", 1, "2026-01-01", None, 1.0, "iresnet", "/r", "m")
    for told in ({"a": 1.0}, {"a": 2.5}, {"b": 0.5}, {"a": 0.0}, {}):
        record = records.spent(tmp_path, record, told)
    assert (record.spend, record.spend_usd) == ({"a": 2.5, "b": 0.5}, 3.0)
    assert records.every(tmp_path)[0].spend_usd == 3.0


@pytest.mark.slow  # a watch pauses for a quarter of a minute
def test_a_machine_that_cannot_be_had_at_first_is_asked_for_again(box: Box, tmp_path: Path) -> None:
    """A failed first attempt does not end the watch."""
    run = begin(box)
    newer(run)
    box.invoke("fetch-checkpoint")
    lose(box, run, tmp_path)
    box.root.write_text("a file where the folder should be")
    watching = box.project.start("watch", "--on", "box")
    assert watching.stdout
    said = []
    while not said or "trying again in" not in said[-1]:
        said.append(watching.stdout.readline())
        assert said[-1], said
    assert "cannot be written" in said[-1]
    box.root.unlink()
    rest, complaint = watching.communicate(timeout=under_load(120))
    assert watching.returncode == 0, complaint
    assert rest.splitlines()[-1].endswith("succeeded")
    assert_each_step_is_told_once(run)


# Storage that others can write to


@pytest.mark.parametrize(
    "note",
    [
        {"file": "../../epoch_001.pt"}, {"epoch": "1"}, {"bytes": -1}, {"sha256": None}, {"x": "y" * 300_000},
        {"file": "epoch_001.pt\n"},
    ],
    ids=["climbs", "no number", "negative", "no hash", "huge", "another name"],
)  # fmt: skip
def test_a_note_that_others_wrote_is_passed_over(tmp_path: Path, note: dict[str, Any]) -> None:
    place = storage.of(f"file://{tmp_path.as_posix()}/bucket", tmp_path, None)
    good = {"file": "epoch_001.pt", "epoch": 1, "step": 1, "sha256": "0" * 64, "bytes": 7}
    place.put(io.BytesIO(b"weights"), "one/checkpoints/epoch_001.pt")
    place.put(io.BytesIO(json.dumps({**good, **note}).encode()), "one/checkpoints/epoch_001.json")
    seen = restore.look(RunFolder(tmp_path / "elsewhere" / "one"), place)
    assert (seen["checkpoints"], seen["damaged"]) == ([], ["epoch_001.json is incomplete"])


def test_a_file_that_others_made_longer_takes_no_room(tmp_path: Path) -> None:
    """No more bytes of a checkpoint are written than its JSON says. An invalid name is refused."""
    place = storage.of(f"file://{tmp_path.as_posix()}/bucket", tmp_path, None)
    note = {"file": "epoch_001.pt", "epoch": 1, "step": 1, "sha256": "0" * 64, "bytes": 7}
    place.put(io.BytesIO(b"x" * (20 << 20)), "one/checkpoints/epoch_001.pt")
    place.put(io.BytesIO(json.dumps(note).encode()), "one/checkpoints/epoch_001.json")
    folder = RunFolder(tmp_path / "elsewhere" / "one")
    with pytest.raises(restore.NotRestored, match=r"epoch_001.pt has more bytes than expected"):
        restore.take(folder, place, "epoch_001.pt", "x")
    with pytest.raises(restore.NotRestored, match=r"is not a checkpoint name"):
        restore.take(folder, place, "../../epoch_001.pt", "x")
    assert list(Path(folder.checkpoints).iterdir()) == []
