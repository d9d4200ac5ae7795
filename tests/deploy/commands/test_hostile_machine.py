"""A rented machine is not trusted: whatever it answers, a command is correct or ends with one sentence.

No answer writes a file outside the run's folder, sends an escape to the terminal, hides another machine, or prevents
the release.

This prints the figures of docs/security.md. It takes minutes; the variable sets the number of random attacks:
    HOSTILE_EXAMPLES=300 pytest -n 0 -s -m "slow or not slow" tests/deploy/commands/test_hostile_machine.py
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy import border, providers
from deploy.billing import teardown
from deploy.commands import (
    app,
    compare,
    cost,
    enter,
    logs,
    note,
    ps,
    remove,
    rental,
    runs,
    status,
    stop,
    train,
    ui_pages,
    watch,
)
from deploy.errors import DeployError
from deploy.pod.agent import agent
from deploy.pod.agent.frames import LINE_BYTES
from deploy.pod.base import retry
from deploy.pod.base.folder import read_json, write_json
from deploy.runs.job import PIECE_BYTES
from deploy.shell import base, link
from deploy.specs.request import How, parse_request
from deploy.ui.screen import Screen
from deploy.ui.web import pages
from deploy.workspace import devices
from tests.deploy.conftest import SOURCE
from tests.deploy.support.hostile import ESCAPE, GOOD, RUN, SILENCE, Hostile, Priced, Say, hostile_machine, make_laptop
from tests.support.load import under_load

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX: asyncssh serves files of this computer")
NAME = "sniperface-laptop-bad-r"
COMMANDS: dict[str, Callable[[Path, Screen], object]] = {
    "status": lambda at, screen: status.status(at, "bad", RUN, screen, watch=False),
    "runs": lambda at, screen: screen.rows("Runs", runs.list_runs(at), ("run_id", "state", "reason")),
    "logs": lambda at, screen: logs.logs(at, "bad", RUN, screen, follow=False),
    "fetch-checkpoint": lambda at, screen: watch.fetch_checkpoint(at, "bad", RUN, "latest", None, screen),
    "mine": lambda at, screen: app.mine(at, "bad", RUN, "latest", None, [], screen),
    "watch": lambda at, screen: watch.watch(at, "bad", RUN, screen, max_usd=0.5),
    "stop": lambda at, screen: stop.stop(at, "bad", RUN, screen),
    "ps": lambda at, screen: screen.rows("Bills", ps.bills(at, screen), ("machine", "usd", "note")),
    "doctor": lambda at, screen: rental.doctor(at, "bad", screen, rent=False, yes=False),
    "evaluate": lambda at, screen: evaluate(at, screen),
    "train --dry-run": lambda at, screen: train.train(at, parse_request(target="bad"), screen, How(dry_run=True)),
    "deploy": lambda at, screen: train.deploy(at, "bad", screen),
    "ssh-config": lambda at, screen: enter.ssh_config(at, "bad", RUN, screen),
    "rm": lambda at, screen: remove.remove(at, [RUN], screen, yes=True),  # refused: its machine costs money
    "note": lambda at, screen: note.note(at, [RUN], screen),
    "cost": lambda at, screen: cost.cost(at, "30", screen),
    "compare": lambda at, screen: compare_all(at, screen),
    "ui": lambda at, screen: open_pages(at, screen),
    "down": lambda at, screen: down(at, screen, anyway=False),
    "down --anyway": lambda at, screen: down(at, screen, anyway=True),
}


def with_some_fast(cases: Iterable[Any], fast: Container[int]) -> list[Any]:
    """Mark all cases as slow except those with the numbers in `fast`. All cases together take minutes."""
    return [case if number in fast else pytest.param(case, marks=pytest.mark.slow) for number, case in enumerate(cases)]


def down(at: Path, screen: Screen, *, anyway: bool) -> object:
    return stop.down(at, "bad", None, screen, every=False, orphans=False, anyway=anyway)


def evaluate(at: Path, screen: Screen) -> object:
    nothing: dict[str, Any] = dict.fromkeys(("weights", "sets", "gallery", "probes", "fit", "out"))
    return app.evaluate(at, "bad", RUN, "latest", screen, overrides=[], **nothing)


def compare_all(at: Path, screen: Screen) -> None:
    """Compare what the machine left on the laptop, once it has been downloaded."""
    watch.fetch_checkpoint(at, "bad", RUN, "latest", None, screen)
    compare.compare(at, [RUN, GOOD], screen)


def open_pages(at: Path, screen: Screen) -> None:
    """Render the pages of `ui` once the machine has been asked. The screen gets the HTML."""
    shown = ui_pages.Pages(at)
    shown.run(RUN)
    asker = shown.live.asker("bad")
    with asker.asking:
        screen.raw(pages.of_run(shown.run(RUN)) + pages.body("runs", **shown.runs("")))


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hostile]:
    with hostile_machine(tmp_path_factory.mktemp("machine")) as made:
        yield made
    print(f"\n{made.figures}")


@pytest.fixture
def patient_laptop(machine: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The laptop of an honest machine, with the time limits of the product."""
    machine.honest()
    Priced.released.clear()
    monkeypatch.setitem(providers.PROVIDERS, "ssh", Priced)
    return make_laptop(tmp_path / "laptop", machine)


@pytest.fixture
def laptop(patient_laptop: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The laptop of an honest machine, with short time limits, so that no test waits long for a machine that is not."""
    for module, name, value in (
        (base, "RUN_S", 3.0), (devices, "PROBE_S", 3.0), (link, "ANSWER_S", 1.5),
        (link, "LONG_ANSWER_S", 1.5), (link, "LINES_SILENCE_S", 3.0),
        (link, "GREETING_LIMIT_S", 5.0),
        (retry, "CONNECT_PATIENCE_S", 1.0), (retry, "FIRST_PATIENCE_S", 1.0), (teardown, "ANYWAY_S", 4.0),
        (teardown, "STOP_SLACK_S", 0.5), (runs, "LIST_LIMIT_S", 5.0), (watch, "CEILING_S", 5.0),
        (watch, "EVERY_S", 0.05),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    return patient_laptop


def files(laptop: Path) -> dict[str, bytes]:
    """Name -> content of the files in and around the laptop's project that no machine may change."""
    own = (f"laptop/runs/{RUN}/", "laptop/.sniperface/")
    found = {path.relative_to(laptop.parent).as_posix(): path for path in laptop.parent.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith(own) and ".pyc" not in name}


def outcome(command: str, laptop: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command. Returns its output, including an error of one sentence; any other error or an escape fails."""
    capsys.readouterr()
    screen = Screen()
    try:
        COMMANDS[command](laptop, screen)
    except DeployError as error:
        screen.error(error)
        lines = error.message.splitlines()
        assert len(lines) == 1, lines
    except OSError as error:  # the command line reports it in the same way
        screen.error(DeployError(str(error)))
    told = capsys.readouterr()
    shown = told.out + told.err
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown), shown
    return shown


# Single attacks


def test_an_honest_machine_is_served(
    machine: Hostile, patient_laptop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Control: the commands work with an honest machine. Short limits would say more of this computer than of them."""
    laptop = patient_laptop
    # `rm` is refused and `deploy` needs images; the others end the run.
    refused = {"rm", "deploy", "doctor", "down", "down --anyway", "stop", "watch"}
    for command in COMMANDS.keys() - refused:
        shown = outcome(command, laptop, capsys)
        assert "error" not in shown, (command, shown)
    assert (laptop / "runs" / RUN / "checkpoints" / "epoch_000.pt").read_bytes() == b"weights"
    assert (laptop / "runs" / RUN / "mining" / "epoch_000" / "report.json").exists()
    machine.status(state="stopped", ended=2.0)
    assert f"released {NAME}" in outcome("down", laptop, capsys)
    assert Priced.released == [NAME]


@pytest.mark.parametrize("command", with_some_fast(["fetch-checkpoint", "watch"], {0}))
@pytest.mark.parametrize(
    "file", with_some_fast(["../../../victim.py", "ABSOLUTE", "..\\victim.py", "epoch_0.py", "a/../epoch_1.pt"], {0, 1})
)
def test_a_checkpoint_writes_nothing_outside_its_run(
    machine: Hostile, laptop: Path, capsys: pytest.CaptureFixture[str], file: str, command: str
) -> None:
    """The JSON of the checkpoint names another file, and the machine's listing contains that file."""
    file = str(laptop / "victim.py") if file == "ABSOLUTE" else file
    place = Path(machine.run.checkpoints / "epoch_000.json")
    write_json(place, {**read_json(place), "file": file})
    machine.lies["listdir"] = lambda _: Say(["epoch_000.json", "epoch_000.pt", file])
    machine.lies["size"] = lambda _: Say(7)
    before = files(laptop)
    outcome(command, laptop, capsys)
    assert files(laptop) == before


@pytest.mark.parametrize(
    "name", ["../../../victim.png", "ABSOLUTE.png", "..\\v.png", "a:b.png", "con.png", "\x1b[2J.png"]
)
@pytest.mark.parametrize("command", ["mine", "stop"])
def test_pictures_and_results_write_nothing_outside_their_run(
    machine: Hostile, laptop: Path, capsys: pytest.CaptureFixture[str], name: str, command: str
) -> None:
    name = name.replace("ABSOLUTE", str(laptop / "victim"))
    truth = Path.iterdir

    def listing(arguments: dict[str, Any]) -> Say:
        path = Path(arguments["path"])
        inside = [each.name for each in truth(path)] if path.is_dir() else []
        return Say([*inside, name] if path.name in ("mining", "epoch_000") else inside)

    machine.lies["listdir"] = listing
    machine.lies["size"] = lambda _: Say(7)
    if command == "stop":
        machine.status(state="stopped", ended=2.0)
        write_json(laptop / "runs" / RUN / "run.json", {**read_json(laptop / "runs" / RUN / "run.json")})
    before = files(laptop)
    shown = outcome(command, laptop, capsys)
    assert files(laptop) == before
    assert command == "stop" or "the file name" in shown


def test_event_files_of_tensorboard_come_home_and_nothing_else_of_their_folder(
    machine: Hostile, laptop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = Path(machine.run.path) / "tensorboard"
    there.mkdir()
    for name in ("events.out.tfevents.1764384000.gpu-box.71.0", "events.out.tfevents.1764384900.gpu-box.90.40", "x.sh"):
        (there / name).write_bytes(name.encode())
    machine.status(state="stopped", ended=2.0)
    outcome("stop", laptop, capsys)
    home = laptop / "runs" / RUN / "tensorboard"
    assert {each.name: each.read_bytes() for each in home.iterdir()} == {
        each.name: each.read_bytes() for each in there.glob("events.*")
    }


@pytest.mark.parametrize("begins", [border.REPORT_BEGINS, b"<script>", border.REPORT_BEGINS[:-1] + b" ", b""])
def test_only_a_page_that_forbids_scripts_stays_on_the_laptop(
    machine: Hostile, laptop: Path, capsys: pytest.CaptureFixture[str], begins: bytes
) -> None:
    """A report must begin with the policy that forbids scripts. A browser obeys it, whatever follows."""
    page = begins + b"<script>alert(1)</script>"
    Path(machine.run.report).write_bytes(page)
    machine.status(state="stopped", ended=2.0)
    shown = outcome("stop", laptop, capsys)
    home = laptop / "runs" / RUN / "report.html"
    assert (home.read_bytes() if home.exists() else None) == (page if begins == border.REPORT_BEGINS else None)
    assert ("is no report: removed" in shown) == (begins != border.REPORT_BEGINS)
    assert (f"report: {home}" in shown) == (begins == border.REPORT_BEGINS)


BAD_STATUS: list[dict[str, Any]] = [
    {"heartbeat": "x"}, {"heartbeat": float("nan")}, {"spend_usd": "lots"}, {"started": "a"}, {"attempt": None},
    {"state": ["running"]}, {"reason": {"a": 1}}, {"ended": []},
]  # fmt: skip


@pytest.mark.parametrize("told", with_some_fast(BAD_STATUS, {0}), ids=str)
def test_one_wrong_number_neither_stops_a_release_nor_hides_others(
    machine: Hostile, laptop: Path, capsys: pytest.CaptureFixture[str], told: dict[str, Any]
) -> None:
    """`runs` shows the other machine and the error of this one. `down` keeps this machine, `--anyway` releases it."""
    machine.status(**told)
    shown = outcome("runs", laptop, capsys)
    assert GOOD in shown
    assert f"the machine's answer is not readable: {NAME}: status.json of run {RUN}, {next(iter(told))}" in shown
    assert "error: " in outcome("status", laptop, capsys)
    assert "the machine was kept" in outcome("down", laptop, capsys)
    assert f"released {NAME}" in outcome("down --anyway", laptop, capsys)
    assert Priced.released == [NAME]


def endless(body: bytes) -> Callable[[dict[str, Any]], Say]:
    return lambda _: Say(raw=body, endless=True)


ATTACKS: dict[str, Callable[[dict[str, Any]], Say | None]] = {
    "never answers, and beats": lambda _: SILENCE,
    "endless beats": endless(b'\0\0\0\x0e\0\0\0\0{"beat": true}'),
    "a header of 4 GiB": lambda _: Say(raw=b"\xff\xff\xff\xf0\0\0\0\0"),
    "a body of 4 GiB": lambda _: Say(raw=b"\0\0\0\x02\xff\xff\xff\xf0{}"),
    "deep JSON": lambda _: Say(raw=b"\0\1\0\0\0\0\0\0" + b"[" * 65536),
    "a list": lambda _: Say(raw=b"\0\0\0\5\0\0\0\0[1,2]"),
    "an id that cannot be looked up": lambda _: Say(raw=b'\0\0\0\x0b\0\0\0\0{"id": [1]}'),
    "an id of nobody": lambda _: Say(raw=b'\0\0\0\x0b\0\0\0\0{"id": 99 }'),
    "no value": lambda _: Say(head={}),
    "half an end": lambda _: Say(head={"ended": "x"}),
    "another verb's end": lambda _: Say(head={"ended": [0, 0]}),
    "another verb's value": lambda _: Say([]),
    "overdue": lambda _: Say(head={"overdue": True}),
    "half an error": lambda _: Say(head={"error": {}}),
    "an error of a list": lambda _: Say(head={"error": {"errno": "x", "text": [], "path": 5}}),
    "endless halves": lambda _: Say(head={"more": True}, body=b"x" * 1000, endless=True),
    "noise": endless(b"\0\0\0\4\0\0\0\0nope"),
}


@pytest.mark.parametrize("attack", with_some_fast(ATTACKS, {0, 4}))
def test_release_never_waits_for_the_machine(
    machine: Hostile, laptop: Path, capsys: pytest.CaptureFixture[str], attack: str
) -> None:
    """`down --anyway` releases the machine within its time limit, whatever the machine answers."""
    for verb in ("clock", "listdir"):
        machine.lies[verb] = ATTACKS[attack]
    began = time.monotonic()
    shown = outcome("down --anyway", laptop, capsys)
    assert f"released {NAME}" in shown
    assert Priced.released == [NAME]
    assert time.monotonic() - began < under_load(15)  # ANYWAY_S is 4 s here
    assert "Traceback" not in shown


@pytest.mark.parametrize("attack", with_some_fast(ATTACKS, {2}))
def test_every_other_command_ends_too(
    machine: Hostile, laptop: Path, capsys: pytest.CaptureFixture[str], attack: str
) -> None:
    machine.lies |= dict.fromkeys(("clock", "read"), ATTACKS[attack])
    assert "error: " in outcome("fetch-checkpoint", laptop, capsys)
    machine.lies = {"run": ATTACKS[attack]}
    outcome("doctor", laptop, capsys)
    if attack != "endless halves":  # endless lines are printed endlessly, as they are for an honest command
        machine.lies = {"lines": ATTACKS[attack]}
        assert "error: " in outcome("mine", laptop, capsys)
    machine.lies = dict.fromkeys(("clock", "read"), ATTACKS[attack])
    assert GOOD in outcome("runs", laptop, capsys)


def test_money_is_counted_by_the_provider_and_this_clock(
    machine: Hostile, laptop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The machine runs for half an hour at 2 USD an hour. It reports no cost, then far too much: both are ignored."""
    machine.status(spend_usd=0)
    outcome("status", laptop, capsys)
    assert read_json(laptop / "runs" / RUN / "run.json")["spend"][NAME] == pytest.approx(1.0, abs=0.05)
    machine.status(spend_usd=1e308)
    outcome("status", laptop, capsys)
    assert read_json(laptop / "runs" / RUN / "run.json")["spend"][NAME] == pytest.approx(1.0, abs=0.05)
    shown = outcome("watch", laptop, capsys)  # with max_usd 0.5
    assert "this run has cost $1.00 and reached max_usd 0.5" in shown
    assert Priced.released == [NAME]
    assert "released" in shown


def test_a_machine_that_says_nothing_is_released_at_max_usd(
    machine: Hostile, laptop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.status(heartbeat="x")
    shown = outcome("watch", laptop, capsys)
    assert "and reached max_usd 0.5" in shown
    assert Priced.released == [NAME]


@pytest.mark.parametrize("size", with_some_fast([1 << 50, 4 * 10**12, -1, "7", 7.5, 10**30, True], {1}))
def test_a_size_is_believed_when_it_fits_and_not_before(
    machine: Hostile, laptop: Path, capsys: pytest.CaptureFixture[str], size: Any
) -> None:
    """A wrong size reserves no disk space, and the download leaves no file."""
    note = Path(machine.run.checkpoints / "epoch_000.json")
    write_json(note, {**read_json(note), "bytes": size})

    def told(arguments: dict[str, Any]) -> Say:
        return Say(size if arguments["path"].endswith(".pt") else Path(arguments["path"]).stat().st_size)

    machine.lies["size"] = told
    assert "error: " in outcome("fetch-checkpoint", laptop, capsys)
    assert not list(laptop.rglob("*.part"))
    assert not list(laptop.rglob("*.pt"))


@pytest.mark.slow
def test_a_file_that_becomes_shorter_leaves_nothing(
    machine: Hostile, laptop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The machine announces a file of 3 MiB, but sends less."""
    note = Path(machine.run.checkpoints / "epoch_000.json")
    write_json(note, {**read_json(note), "bytes": 3 << 20})
    machine.lies["size"] = lambda arguments: Say(3 << 20 if arguments["path"].endswith(".pt") else 5)
    shown = outcome("fetch-checkpoint", laptop, capsys)
    assert "became shorter while it was copied" in shown
    assert not list(laptop.rglob("*.part"))


def test_what_is_said_is_shown_and_not_obeyed(
    machine: Hostile, laptop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Escapes in a log, a reason, an error and a line of `mine` are printed as text. `outcome` refuses real ones."""
    Path(machine.run.log).write_text(f"before {ESCAPE} \x1b[32mgreen\x1b[0m\rafter\n")
    machine.status(reason=f"why {ESCAPE}\nreleased another", state="failed", ended=2.0)
    machine.lines = [f"line {ESCAPE}\n".encode(), b"x" * 300_000 + b"\n"]
    assert "\\x1b]52;c;aGk=\\x1b\\ green\n" not in outcome("logs", laptop, capsys)
    assert "before \\x1b]52;c;aGk=" in outcome("logs", laptop, capsys)
    assert "green\nafter" in outcome("logs", laptop, capsys)
    assert "why \\x1b]52" in outcome("status", laptop, capsys)
    assert "line \\x1b]52" in outcome("mine", laptop, capsys)
    machine.lies["size"] = lambda _: Say(head={"error": {"errno": "EACCES", "text": f"no {ESCAPE}", "path": ESCAPE}})
    assert "\\x1b" in outcome("fetch-checkpoint", laptop, capsys)


def test_a_log_of_several_pieces_is_printed_to_its_end(
    machine: Hostile, laptop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"line {number}" for number in range(2 * PIECE_BYTES // 10)]
    Path(machine.run.log).write_text("\n".join(lines) + "\n")
    assert outcome("logs", laptop, capsys).splitlines() == lines


@pytest.mark.slow
def test_links_on_the_machine_bring_nothing_else(
    machine: Hostile, laptop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A link on the machine brings a plain file with the machine's data. A link in the laptop's folder is refused."""
    (machine.root / "secret").write_bytes(b"weights")
    Path(machine.run.checkpoints / "epoch_000.pt").unlink()
    Path(machine.run.checkpoints / "epoch_000.pt").symlink_to(machine.root / "secret")
    outcome("fetch-checkpoint", laptop, capsys)
    fetched = laptop / "runs" / RUN / "checkpoints" / "epoch_000.pt"
    assert not fetched.is_symlink()
    fetched.unlink()
    victim = laptop.parent / "victim"
    victim.write_bytes(b"mine")
    fetched.symlink_to(victim)
    assert "is a symbolic link: remove it" in outcome("fetch-checkpoint", laptop, capsys)
    assert victim.read_bytes() == b"mine"


def test_a_guard_that_lies_never_keeps_a_machine(
    machine: Hostile, laptop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The next command releases a machine past max_usd, by the provider's price, whatever work it reports."""
    target = laptop / "conf" / "deploy" / "bad.yaml"
    target.write_text(json.dumps({**json.loads(target.read_text()), "max_usd": 0.1}))
    write_json(machine.root / "guard.json", {"code": "/"})
    work = {"at_work": ["r1"], "guarded": True, "state": "armed", "decision": "x", "only_copies": {}}
    said = json.dumps(work).encode()
    machine.lies["run"] = lambda _: Say(head={"ended": [0, len(said)]}, body=said)
    shown = outcome("status", laptop, capsys)
    assert Priced.released == [NAME]
    assert "past max_usd: 0.1, a hard limit" in shown


# Random attacks

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(ESCAPE),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
EVIL_NAME = st.sampled_from(
    ["../../x.pt", "/tmp/x.png", "epoch_000.json", "epoch_000.pt", "clusters.png", "..", "a:b", ESCAPE, "x.png"]
)
LIES = st.one_of(
    JSON.map(lambda value: Say(value)),
    st.lists(EVIL_NAME, max_size=4).map(lambda names: Say(names)),
    st.binary(max_size=40).map(lambda raw: Say(raw=raw + b"\0" * 8)),
    st.sampled_from([ATTACKS[name](None) for name in ATTACKS if "endless" not in name]),  # type: ignore[arg-type]
)
ASKED = ["clock", "size", "read", "listdir", "hashes", "run", "lines", "write", "hardware", "which"]  # by most commands
VERBS = st.sampled_from(ASKED) | st.sampled_from(sorted(agent.VERBS))
KEYS = st.sampled_from(["state", "attempt", "heartbeat", "spend_usd", "reason", "started", "ended", "file", "sha256"])
FILES = st.sampled_from(
    [
        "status.json", "checkpoints/epoch_000.json", "metrics.jsonl", "config.yaml", "train.log", "verification.json",
        "report.html", "mining/clusters.png", "tensorboard/events.out.tfevents.1", "results/epoch_000/report.json",
        "../../guard.json", "../../guard-status.json",
    ]
)  # fmt: skip


def attack(machine: Hostile, lies: dict[str, Say | None], file: str, told: dict[str, Any]) -> None:
    machine.honest()
    place = Path(machine.run.path / file)
    place.parent.mkdir(exist_ok=True)
    place.write_text(json.dumps({**read_json(place), **told}) + "\n")
    machine.lies |= {verb: (lambda _, said=said: said) for verb, said in lies.items()}  # type: ignore[misc]


def right_or_one_sentence(
    machine: Hostile, laptop: Path, capsys: pytest.CaptureFixture[str], command: str, *what: Any
) -> None:
    """Run a command under attack. Then `runs` shows the other machine, and `down --anyway` releases this one."""
    figures = machine.figures
    figures.attacks += 1
    Priced.released.clear()
    attack(machine, *what)
    before = files(laptop)
    outcome(command, laptop, capsys)
    if command != "runs":
        assert GOOD in outcome("runs", laptop, capsys)
        figures.commands += 1
    figures.releases += 1
    if not Priced.released:
        outcome("down --anyway", laptop, capsys)
        figures.commands += 1
    figures.commands += 1
    figures.released += Priced.released == [NAME]
    after = files(laptop)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    figures.outside += len(changed)
    assert Priced.released == [NAME]
    assert not changed


ANY = {
    "command": st.sampled_from(list(COMMANDS)),
    "lies": st.dictionaries(VERBS, LIES, max_size=2),
    "file": FILES,
    "told": st.dictionaries(KEYS, JSON, max_size=3),
}
PATIENT = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=2, **PATIENT)  # type: ignore[arg-type]
@given(**ANY)  # type: ignore[arg-type]
def test_anything_is_right_or_one_sentence(
    machine: Hostile, laptop: Path, capsys: pytest.CaptureFixture[str], **what: Any
) -> None:
    right_or_one_sentence(machine, laptop, capsys, *what.values())


@pytest.mark.slow  # two hundred commands over SSH
@settings(max_examples=int(os.environ.get("HOSTILE_EXAMPLES", "60")), **PATIENT)  # type: ignore[arg-type]
@given(**ANY)  # type: ignore[arg-type]
def test_anything_is_right_or_one_sentence_for_long(
    machine: Hostile, laptop: Path, capsys: pytest.CaptureFixture[str], **what: Any
) -> None:
    right_or_one_sentence(machine, laptop, capsys, *what.values())


SCRIPT = f"""
import re, sys
from pathlib import Path
from deploy.commands import app as apps, logs, status
from deploy.errors import DeployError
from deploy.ui.screen import Screen
at, screen = Path(sys.argv[1]), Screen()
COMMANDS = {{
    "follow": lambda: logs.logs(at, "bad", "{RUN}", screen, follow=True),
    "logs": lambda: logs.logs(at, "bad", "{RUN}", screen, follow=False),
    "mine": lambda: apps.mine(at, "bad", "{RUN}", "latest", None, [], screen),
    "status": lambda: status.status(at, "bad", "{RUN}", screen, watch=False),
}}
for name in sys.argv[2:]:
    try:
        COMMANDS[name]()
    except DeployError as error:
        print(error.message, file=sys.stderr)
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1], file=sys.stderr)
"""  # not ru_maxrss: a child process starts with its parent's value
LIMIT_KIB = 64 << 10
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: memory is read in /proc")


def peak_kib(laptop: Path, *commands: str) -> int:
    """The peak memory of a process that runs these commands to their end."""
    argv = [sys.executable, "-c", SCRIPT, str(laptop), *commands]
    done = subprocess.run(argv, cwd=SOURCE, capture_output=True, text=True, check=False, timeout=under_load(600))
    assert done.returncode == 0, done.stderr
    return int(done.stderr.split()[-1])


def endless_peak_kib(laptop: Path, command: str) -> int:
    """The peak memory of a process with endless output, after it has printed three times LIMIT_KIB."""
    argv = [sys.executable, "-c", SCRIPT, str(laptop), command]
    with subprocess.Popen(argv, cwd=SOURCE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            left = 3 * (LIMIT_KIB << 10)
            while left > 0 and (piece := process.stdout.read1(1 << 20)):
                left -= len(piece)
            assert left <= 0, "it ended"
            told = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
        finally:
            process.kill()
    assert told is not None
    return int(told[1])


@pytest.mark.slow  # a process for each attack
@LINUX
def test_memory_stays_within_bounds(machine: Hostile, laptop: Path) -> None:
    """An attack takes less than 64 MiB of memory more than an honest answer. Each is measured in a separate process."""
    Path(machine.run.log).write_bytes(b"\x1b" * (20 << 20))
    normal = peak_kib(laptop, "status")
    Path(machine.run.metrics).write_bytes(b"[[],[],[]]\n" + b'{"event": "x", "y": [[],[],[],[],[],[]]}\n' * 200_000)
    above = machine.figures.memory_kib
    above["log of escapes"] = peak_kib(laptop, "status", "logs") - normal
    for name in ("endless halves", "a header of 4 GiB", "a body of 4 GiB", "deep JSON"):
        machine.lies["clock"] = ATTACKS[name]
        above[name] = peak_kib(laptop, "status") - normal
    assert {name: kib for name, kib in above.items() if kib >= LIMIT_KIB} == {}


ENDLESS = {
    "an endless line": ("mine", "lines", b"x" * LINE_BYTES),
    "an endless line of no text": ("mine", "lines", b"\xff" * LINE_BYTES),
    "endless lines": ("mine", "lines", b"x" * (LINE_BYTES - 1) + b"\n"),
    "an endless log of escapes": ("follow", "read", b"\x1b" * PIECE_BYTES),
    "an endless log": ("follow", "read", b"x" * PIECE_BYTES),
}


@pytest.mark.slow  # each sends 192 MiB over SSH
@LINUX
@pytest.mark.parametrize("attack", ENDLESS)
def test_what_never_ends_is_not_kept(machine: Hostile, laptop: Path, attack: str) -> None:
    """An endless line, endless lines, and a log that grows faster than it is read do not stay in memory."""
    command, verb, body = ENDLESS[attack]
    normal = peak_kib(laptop, "mine" if command == "mine" else "logs")

    def told(arguments: dict[str, Any]) -> Say:
        if verb == "lines":
            return Say(head={"more": True}, body=body, endless=True)
        path = Path(arguments["path"])
        if path != Path(machine.run.log):
            return Say(head={"bytes": True}, body=path.read_bytes() if path.exists() else b"")
        return Say(head={"bytes": True}, body=body[: arguments["limit"]])

    machine.lies[verb] = told
    if verb == "read":
        machine.lies["size"] = lambda _: Say(1 << 40)
    machine.figures.memory_kib[attack] = endless_peak_kib(laptop, command) - normal
    assert machine.figures.memory_kib[attack] < LIMIT_KIB
