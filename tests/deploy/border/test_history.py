"""Curves and settings of runs, read from files that code on a machine has written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploy.border import EVENT_BYTES, FILE_BYTES, History, read_history, read_settings


def test_curves_are_read_by_epoch(tmp_path: Path) -> None:
    """Of an epoch that was trained twice the later value counts. Invalid lines and other evaluations are left out."""
    events = [
        {"event": "step", "epoch": 0, "step": 1, "images_per_s": 100},
        {"event": "step", "epoch": 0, "step": 2, "images_per_s": 400},
        {"event": "step", "epoch": 0, "step": 3, "images_per_s": 300},
        {"event": "epoch", "epoch": 1, "loss": 9.0},
        {"event": "epoch", "epoch": 0, "loss": 5.0},
        {"event": "epoch", "epoch": 1, "loss": 4.5},
        {"event": "epoch", "epoch": 2, "loss": None},
        {"event": "eval", "epoch": 0, "what": "untrained", "accuracy": 0.7},
        {"event": "eval", "epoch": 1, "what": "trained", "accuracy": 0.8},
        {"event": "eval", "epoch": 2, "what": "trained", "accuracy": "high"},
        {"event": "eval", "epoch": [3], "what": "trained", "accuracy": 0.1},
    ]
    lines = [*map(json.dumps, events), "{", "x" * (EVENT_BYTES * 2), json.dumps({"event": "epoch", "epoch": 4})]
    file = tmp_path / "metrics.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    assert read_history(file) == History(((0, 5.0), (1, 4.5)), ((1, 0.8),), 300.0)
    assert read_history(tmp_path / "none") == History((), (), None)


def test_validation_people_have_a_curve_of_their_own(tmp_path: Path) -> None:
    """An evaluation whose number is no share counts as invalid."""
    told = [
        {"event": "eval", "epoch": epoch, "what": what, "accuracy": 0.5, "validation_accuracy": value}
        for epoch, what, value in [
            (0, "untrained", 0.9), (0, "trained", 0.6), (1, "trained", None), (2, "trained", 1.01), (3, "trained", "x"),
            (4, "trained", -0.1), (5, "trained", 1),
        ]
    ]  # fmt: skip
    file = tmp_path / "metrics.jsonl"
    file.write_text("\n".join(map(json.dumps, told)), encoding="utf-8")
    found = read_history(file)
    assert found.validation == ((0, 0.6), (5, 1.0))
    assert found.accuracy == ((0, 0.5), (1, 0.5), (5, 0.5))


def test_sets_have_curves_of_their_own(tmp_path: Path) -> None:
    """Their number is bounded, and their names are safe to show."""
    told = [{"event": "eval", "epoch": epoch, "what": "sets/lfw", "accuracy": 0.5 + epoch / 4} for epoch in (1, 0, 2)]
    told += [{"event": "eval", "epoch": 0, "what": f"sets/x\x1b{number}", "accuracy": 0.5} for number in range(99)]
    file = tmp_path / "metrics.jsonl"
    file.write_text("\n".join(map(json.dumps, told)), encoding="utf-8")
    sets = read_history(file).sets
    assert sets["lfw"] == ((0, 0.5), (1, 0.75), (2, 1.0))
    assert len(sets) == 20
    assert "\x1b" not in "".join(sets)


def test_settings_are_flat_and_safe_to_show(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        'train:\n  optimizer: {lr: 0.1, name: sgd}\n  epochs: 5\ndata: {x: null, sets: [a, b]}\nbad: "\\e[2J"\nhuge: '
        f"1{'0' * 40}\nfine: true\n",
        encoding="utf-8",
    )
    found = read_settings(file)
    assert found is not None
    assert "\x1b" not in str(found.pop("bad"))
    assert found.pop("huge") == f"1{'0' * 40}"
    assert found == {
        "train.optimizer.lr": 0.1, "train.optimizer.name": "sgd", "train.epochs": 5, "data.x": None,
        "data.sets": "a, b", "fine": True,
    }  # fmt: skip


BOMB = "a: &a {x: 1, y: 2}\n" + "".join(
    f"{name}: &{name} {{p: *{before}, q: *{before}, r: *{before}, s: *{before}}}\n"
    for before, name in zip("abcdefghij", "bcdefghijk", strict=True)
)


@pytest.mark.parametrize(
    "text",
    ["", "just words", "a: [1", "!!python/object/apply:os.getcwd []", BOMB, "a: &a\n  b: *a\n", "[" * 5000],
    ids=["empty", "text", "broken", "object", "references", "circle", "deep"],
)
def test_a_file_that_is_no_configuration_has_no_settings(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text, encoding="utf-8")
    assert read_settings(file) is None


def test_a_huge_or_missing_file_has_no_settings(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    assert read_settings(file) is None
    file.write_bytes(b"a: " + b"1" * FILE_BYTES["config.yaml"])
    assert read_settings(file) is None


def test_a_configuration_larger_than_any_of_ours_is_not_parsed(tmp_path: Path) -> None:
    """Parsed, 1 MiB of YAML takes 300 MiB of memory and several seconds."""
    (tmp_path / "config.yaml").write_text("a: [" + "0," * (1 << 19) + "0]")
    assert read_settings(tmp_path / "config.yaml") is None


def test_a_huge_number_is_shown_in_words(tmp_path: Path) -> None:
    """Python refuses to write it in decimals."""
    huge = f"0x{'f' * 6000}"
    (tmp_path / "config.yaml").write_text(f"a: {huge}\n? {huge}\n: [{huge}, 1]\n")
    assert read_settings(tmp_path / "config.yaml") == {"a": "a huge number", "a huge number": "a huge number, 1"}
