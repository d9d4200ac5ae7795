"""An answer of a machine becomes a typed, bounded value, or an error of one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy import border
from deploy.border import Name, Place, impossible, place
from deploy.errors import BadAnswer, WrongUse

PROJECT = Path(__file__).parents[3]
NOTE = {"file": "epoch_001.pt", "sha256": "a" * 64, "epoch": 1, "step": 2, "bytes": 9, "fraction": 1.0}
STATUS = {"state": "running", "attempt": 1, "heartbeat": 1.7e9}


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "../a.pt", "/etc/passwd", "a/b", "a\\b", "C:a", "a:stream", "CON", "nul.pt", "Com1.txt", "lpt9",
        "a.", "a ", " a", ".ssh", "-rf", "~root", "a\0b", "a\nb", "a\x1b[31m", "a\u202egnp", "x" * 500, "ü" * 119 + "x",
        "a|b", 'a"b', "a?b", None, 5, ["a"], "COM¹",
    ],
)  # fmt: skip
def test_a_name_is_one_plain_component(name: object) -> None:
    if name == "ü" * 119 + "x":  # 239 bytes: it fits
        assert Name(name) == name
        return
    with pytest.raises(BadAnswer) as caught:
        Name(name, "box: the results")
    assert caught.value.message.startswith("box: the results: the file name ")
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("name", ["epoch_001.pt", "a b.json", "größe.png", "console.txt", "a..b", "roc_lfw.png"])
def test_an_ordinary_name_stays_as_it_is(name: str) -> None:
    assert Name(name) == name


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (r"C:\Jo Müller\faces 1.0\model.pt", None),
        (r"\\nas\share\..\-model.pt", None),
        (r"C:\con\model.pt", "con"),
        (r"C:\models\aux.pt", "aux.pt"),
        (r"C:\models\m?.pt", "m?.pt"),
        (r"C:\models\model:1.pt", "model:1.pt"),
        (r"C:\models\model.pt.", "model.pt."),
        (r"C:\models \model.pt", "models "),
    ],
)
def test_a_path_that_windows_cannot_have_is_named(path: str, wrong: str | None) -> None:
    assert impossible(PureWindowsPath(path)) == wrong
    assert impossible(PurePosixPath("/models/aux?.pt ")) is None


@given(st.text())
def test_no_name_leads_out_of_its_folder(text: str) -> None:
    try:
        found = Place(Path("/run"), (Name(text),))
    except BadAnswer:
        return
    assert found.path.parent == Path("/run")


@pytest.mark.skipif(os.name == "nt", reason="needs symbolic links: run on Linux or macOS")
def test_a_link_below_the_folder_is_refused(tmp_path: Path) -> None:
    """A symbolic link in place of a folder or of a file is refused."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "run" / "train.log").symlink_to(tmp_path / "elsewhere" / "file")
    for names in (("checkpoints", "epoch_001.pt"), ("train.log",)):
        with pytest.raises(WrongUse, match="is a symbolic link: remove it"):
            _ = place(tmp_path / "run", *names).path
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("state", "x"), ("state", None), ("state", ["running"]), ("attempt", "1"), ("attempt", -1), ("attempt", True),
        ("heartbeat", "x"), ("heartbeat", None), ("heartbeat", float("nan")), ("heartbeat", 1e300),
        ("heartbeat", 10**400), ("spend_usd", "lots"), ("spend_usd", -1), ("started", "a"), ("ended", {}),
        ("epoch", 1.5), ("reason", 5), ("exit_code", "0"), ("images_per_s", float("inf")),
    ],
)  # fmt: skip
def test_a_status_that_does_not_fit_names_the_field(key: str, value: Any) -> None:
    with pytest.raises(BadAnswer, match=f"box: status.json, {key} is .* instead of"):
        border.status({**STATUS, key: value}, "box: status.json")


def test_a_reason_is_shown_and_not_obeyed() -> None:
    told = border.status({**STATUS, "reason": "a\x1b]52;c;x\x07\nreleased box\u202e" + "x" * 5000}, "box")
    assert told.reason is not None
    assert told.reason.startswith("a\\x1b]52;c;x\\x07\\nreleased box\\u202e")
    assert len(told.reason) <= border.REASON_CHARACTERS


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("file", "../../../deploy/errors.py"), ("file", "/etc/cron.d/x"), ("file", "epoch_1.py"), ("file", None),
        ("file", "epoch_1.pt:x"), ("epoch", "1"), ("step", 1.5), ("sha256", "../.."), ("sha256", 5), ("bytes", -1),
        ("bytes", 1 << 50), ("fraction", float("nan")), ("fraction", 2), ("eval", []), ("eval", {"accuracy": "x"}),
        ("eval", {"validation_accuracy": "x"}), ("eval", {"validation_accuracy": 1.5}),
        ("eval", {"validation_accuracy": True}),
        ("model", "x"), ("epoch_complete", "yes"),
    ],
)  # fmt: skip
def test_a_checkpoints_note_that_does_not_fit_is_refused(key: str, value: Any) -> None:
    if value != value:  # NaN is not JSON, so the value counts as missing
        assert border.checkpoint_note(json.dumps({**NOTE, key: value}).encode(), "box")[key] is None
        return
    with pytest.raises(BadAnswer, match=r"^box"):
        border.checkpoint_note(json.dumps({**NOTE, key: value}).encode(), "box")


@pytest.mark.parametrize("data", [b"[" * 200_000, b"5", b"[]", b"", b"\xff", b'{"a": ', b"{}" + b" " * (300 << 10)])
def test_a_document_is_one_small_object(data: bytes) -> None:
    with pytest.raises(BadAnswer):
        border.document(data, "box: status.json")


def sentence(check: Callable[[], object]) -> str:
    """Run a check. Returns its error message, or an empty text for a valid value."""
    try:
        check()
    except BadAnswer as error:
        return error.message
    return ""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from([*STATUS, *NOTE, "event", "time", "what", "loss", "reason", "eval", "model", "checkpoints"])


@given(st.dictionaries(KEYS, JSON))
def test_anything_is_a_value_or_one_sentence(said: dict[str, Any]) -> None:
    data = json.dumps(said).encode()
    checks = [lambda: border.status(said, "box"), lambda: border.checkpoint_note(said, "box")]
    checks += [lambda: border.dollars(said, "box"), lambda: border.standing(data, "box")]
    checks += [lambda: border.restorable(data.decode(), "box"), lambda: border.progress(data.decode(), "box")]
    assert all(sentence(check).isprintable() for check in checks)
    found = border.event(data)
    assert found is None or all(isinstance(found.get(key, 0), int | float | None) for key in ("time", "step"))


def test_events_are_kept_in_bounds() -> None:
    """The newest events of each kind are kept, in order. Many `step` events do not push out a rare `eval` event."""
    kept = border.Newest()
    kept.add([{"event": "eval", "what": "pixels"}])
    kept.add([{"event": "step", "step": number} for number in range(10_000)])
    kept.add([{"event": f"kind {number}"} for number in range(1000)])
    events = kept.events()
    assert events[0] == {"event": "eval", "what": "pixels"}
    assert [each["step"] for each in events if each["event"] == "step"][-1] == 9999
    assert len(events) < kept.KINDS * kept.OF_EACH


@pytest.mark.parametrize(
    "check",
    [
        lambda: border.snapshot_state({"there": False, "commits": ["--output=/x"]}, "box"),
        lambda: border.snapshot_state({"there": 1, "commits": []}, "box"),
        lambda: border.snapshot_state([], "box"),
        lambda: border.address("10.0.0.1; id", "box"),
        lambda: border.heard([["10.0.0.1", "10.0.0.2", "eth0 x"]], "box"),
        lambda: border.heard([["10.0.0.1"]], "box"),
        lambda: border.interface("a" * 50, "box"),
    ],
)
def test_what_goes_into_command_lines_is_of_its_kind(check: Callable[[], object]) -> None:
    assert sentence(check).startswith("box")


def test_ordinary_answers_pass() -> None:
    assert border.snapshot_state({"there": False, "commits": ["a" * 40]}, "box") == (False, ["a" * 40])
    assert border.heard([["10.0.0.1", "10.0.0.2", "eth0"]], "box") == [("10.0.0.1", "10.0.0.2", "eth0")]


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: memory is read in /proc")
@pytest.mark.slow  # each streams 48 MiB
@pytest.mark.parametrize("byte", ["x", "\\xff", "\\x1b"])
def test_a_line_without_an_end_is_not_kept(byte: str) -> None:
    """A process that streams one line of 48 MiB holds less than 32 MiB of it: text, invalid UTF-8 or escapes."""
    script = f"""
import re, sys
from pathlib import Path, PurePosixPath, PureWindowsPath
from deploy.shell import LocalShell
from deploy.ui.screen import Screen

class Endless(LocalShell):
    def lines(self, argv, cwd):
        for _ in range(48 * 16):
            yield b"{byte}" * (64 << 10)
        return 0

def peak_kib():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

screen, normal = Screen(), peak_kib()
for line in Endless().stream(["command"]):
    screen.say(line)
print(peak_kib() - normal, file=sys.stderr)
"""
    argv = [sys.executable, "-c", script]
    done = subprocess.run(argv, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True)
    print(f"{byte}: {int(done.stderr) / 1024:.0f} MiB above normal")
    assert int(done.stderr) < 32 << 10
