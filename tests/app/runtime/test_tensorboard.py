"""Event files of TensorBoard, read with the messages of the library that writes them."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event, SessionLog

from app.config import load
from app.errors import WrongUse
from app.runtime.checkpoint import TrainState
from app.runtime.dist import World
from app.runtime.folder import RunFolder
from app.runtime.start import refuse_unfit_files
from app.runtime.tensorboard import TensorBoard, numbers
from app.runtime.track import JsonLines, Tracker, tracker

Points = list[tuple[str, int, float]]


def masked(data: bytes) -> int:
    value = crc32c(data)
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def records(path: Path) -> Iterator[Event]:
    """The events of one file: each a length, data, and a checksum of either."""
    content, place = path.read_bytes(), 0
    while place < len(content):
        head = content[place : place + 8]
        size = struct.unpack("<Q", head)[0]
        data = content[place + 12 : place + 12 + size]
        sums = content[place + 8 : place + 12] + content[place + 12 + size : place + 16 + size]
        assert struct.unpack("<II", sums) == (masked(head), masked(data))
        yield Event.FromString(data)
        place += 16 + size


def shown(folder: RunFolder) -> Points:
    """What TensorBoard shows of a folder: a START drops earlier points from its step on."""
    points: Points = []
    for path in sorted(folder.tensorboard.iterdir(), key=lambda file: (file.stat().st_mtime_ns, file.name)):
        for event in records(path):
            if event.session_log.status == SessionLog.START:
                points = [point for point in points if point[1] < event.step]
            points += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
    return points


def trained(folder: RunFolder, steps: range, *, resumed: int = 0) -> None:
    """The events of a run that begins at step `resumed` and takes `steps`."""
    track = Tracker([TensorBoard(folder)])
    start = TrainState(0, 0, resumed)
    track.event("start", start, world_size=1, epochs=3, notes=[])
    track.event("eval", start, what="pixels", accuracy=0.5, rank1=0.1)
    for step in steps:
        track.event("step", TrainState(0, 8 * step, step), loss=1 / step, lr=0.1, seconds_left=9)
    track.event("eval", TrainState(0, 0, steps[-1]), what="trained", accuracy=0.75, rank1=0.5)
    track.event("eval", TrainState(0, 0, steps[-1]), what="sets/lfw", accuracy=0.875, measure="10-fold")
    track.event("end", TrainState(0, 0, steps[-1]), reason="done", message="", seconds=1.0)
    track.close()


def test_each_number_of_an_event_is_a_point(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    trained(folder, range(1, 4))
    points = shown(folder)
    assert [point for point in points if point[0] == "step/loss"] == [
        ("step/loss", step, pytest.approx(1 / step)) for step in (1, 2, 3)
    ]
    measured = {(tag, step): value for tag, step, value in points if tag.endswith("accuracy")}
    assert measured == {
        ("eval/pixels/accuracy", 0): 0.5, ("eval/accuracy", 3): 0.75, ("eval/sets/lfw/accuracy", 3): 0.875,
    }  # fmt: skip
    assert not [tag for tag, _, _ in points if tag.startswith(("start", "end")) or "notes" in tag]


def test_a_resumed_run_goes_on_in_the_folder_and_no_step_is_doubled(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    trained(folder, range(1, 7))  # its newest checkpoint is of step 4: 5 and 6 are lost
    trained(folder, range(5, 9), resumed=4)
    trained(folder, range(9, 10), resumed=8)
    assert len(list(folder.tensorboard.iterdir())) == 3
    points = shown(folder)
    assert sorted(step for tag, step, _ in points if tag == "step/loss") == list(range(1, 10))
    assert len({point[:2] for point in points}) == len(points)


def test_a_start_from_scratch_drops_what_was_there(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    trained(folder, range(1, 7))
    for file in list(folder.tensorboard.iterdir()):
        file.rename(file.with_name(f"{file.name}.earlier"))
    trained(folder, range(1, 3))
    assert [step for tag, step, _ in shown(folder) if tag == "step/loss"] == [1, 2]


def test_it_is_chosen_by_track_and_written_by_the_first_rank_alone(tmp_path: Path) -> None:
    config, cpu = load(["track=tensorboard"]), torch.device("cpu")
    sinks = [tracker(config, RunFolder(tmp_path), World(rank, 2, cpu)).sinks for rank in (0, 1)]
    assert [[type(sink) for sink in some].count(TensorBoard) for some in sinks] == [1, 0]
    assert not RunFolder(tmp_path).tensorboard.exists(), "nothing before the run starts"
    for sink in sinks[0]:
        if isinstance(sink, JsonLines):
            sink.close()


def test_a_folder_that_cannot_be_written_ends_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder(tmp_path)
    folder.tensorboard.write_text("a file in its place")
    trained(folder, range(1, 3))
    assert capsys.readouterr().out.count("metrics.jsonl continues") == 1


def test_a_missing_package_is_one_sentence_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(WrongUse, match="pip install tensorboardX"):
        refuse_unfit_files(load(["track=tensorboard"]), World(0, 1, torch.device("cpu")))


def test_measured_things_have_names_of_their_own() -> None:
    record = {"event": "eval", "time": 1.0, "step": 3, "epoch": 0, "what": "untrained", "rank1": 0.5, "ok": True}
    assert dict(numbers(record)) == {"eval/untrained/epoch": 0, "eval/untrained/rank1": 0.5}
    assert dict(numbers({**record, "what": "trained"})) == {"eval/epoch": 0, "eval/rank1": 0.5}


def test_the_accuracy_of_the_people_who_choose_has_a_curve_of_its_own() -> None:
    """W&B gets the same names. Baselines are apart from the trained network."""
    measured = {"event": "eval", "time": 1.0, "epoch": 1, "step": 10, "accuracy": 0.8, "validation_accuracy": 0.7}
    names = [name for name, _ in numbers({**measured, "what": "trained"})]
    assert names == ["eval/epoch", "eval/accuracy", "eval/validation_accuracy"]
    assert dict(numbers({**measured, "what": "pixels"}))["eval/pixels/validation_accuracy"] == 0.7
