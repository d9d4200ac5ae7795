"""The device and the precision of a step are decided once, from what torch can really use."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from app.config import load
from app.errors import WrongUse
from app.runtime import compiler, devices
from app.runtime.out_of_memory import OutOfMemory, step_fits
from app.runtime.precision import resolve
from tests.app.support.ranks import run_ranks
from tests.app.support.training import PROJECT, TINY
from tests.support.forks import run_training
from tests.support.load import under_load


@pytest.mark.parametrize(
    ("wish", "capabilities", "precision"),
    [
        ("auto", [], "fp32"),
        ("auto", [(8, 6)], "bf16"),
        ("auto", [(8, 0), (9, 0), (12, 0)], "bf16"),
        ("auto", [(7, 5)], "fp16"),
        ("auto", [(9, 0), (7, 5), (9, 0)], "fp16"),
        ("fp32", [(9, 0)], "fp32"),
        ("fp16", [(9, 0)], "fp16"),
        ("bf16", [(7, 5)], "bf16"),
        ("fp16", [], "fp16"),
    ],
)
def test_precision_follows_the_oldest_gpu(wish: str, capabilities: list[tuple[int, int]], precision: str) -> None:
    assert resolve(wish, capabilities) == precision


def test_all_ranks_settle_on_one_precision() -> None:
    """Ranks exchange what their GPUs can do, so ranks with different GPUs choose the same precision."""
    run_ranks(
        """
import torch
from app.runtime import dist, precision
with dist.world() as here:
    assert precision.settle("auto", here) == "fp32"
    assert precision.settle("fp16", here) == "fp16"
    told = dist.from_all((here.rank, "x"), here)
    assert told == [(0, "x"), (1, "x"), (2, "x")], told
    newest = [(9, 0), (7, 5), (8, 6)][here.rank]
    assert precision.resolve("auto", dist.from_all(newest, here)) == "fp16"
print("fine")
""",
        3,
    )


FACTS = ("2.13.0+cu130", "13.0", "550.54.14")
OLD = "CUDA initialization: The NVIDIA driver on your system is too old (found version 12040). Please update"


@pytest.mark.parametrize(
    ("environ", "found", "warning", "words"),
    [
        ({}, 0, "", None),
        ({}, 2, "", None),
        ({"SNIPERFACE_DEVICES": "0"}, 0, "", None),
        ({"SNIPERFACE_DEVICES": "2", "LOCAL_WORLD_SIZE": "2"}, 2, "", None),
        ({"SNIPERFACE_DEVICES": "3", "LOCAL_WORLD_SIZE": "3"}, 0, OLD, "planned for 3 GPUs here and torch can use 0"),
        ({"SNIPERFACE_DEVICES": "3"}, 2, "", "planned for 3 GPUs here and torch can use 2"),
        ({"LOCAL_WORLD_SIZE": "3"}, 1, "", "give --nproc_per_node=1"),
        ({"LOCAL_WORLD_SIZE": "3"}, 0, "", None),
    ],
)
def test_fewer_gpus_than_planned_are_one_sentence(
    environ: dict[str, str], found: int, warning: str, words: str | None
) -> None:
    fault = devices.missing(environ, found, *FACTS, warning)
    assert (fault is None) == (words is None)
    if words:
        assert words in fault
        assert "\n" not in fault
    if warning:
        assert "driver 550.54.14" in fault
        assert "CUDA 13.0" in fault
        assert "is too old (found version 12040);" in fault


def test_a_number_of_gpus_that_is_none_is_refused() -> None:
    with pytest.raises(WrongUse, match="SNIPERFACE_DEVICES=many is not a number"):
        devices.planned_gpus({"SNIPERFACE_DEVICES": "many"})


def train(data: Path, folder: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    argv = ["-m", "app.train", *TINY, f"data.binary_cache_path={data}", f"run.dir={folder}", *words]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **env}
    return run_training(argv, PROJECT, environment)


def test_a_run_planned_on_gpus_never_trains_on_a_cpu(small_data: Path, tmp_path: Path) -> None:
    done = train(small_data, tmp_path / "run", SNIPERFACE_DEVICES="1")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "planned for 1 GPUs here and torch can use 0" in done.stderr
    assert not (tmp_path / "run").exists()


def test_no_command_computes_on_a_cpu_what_was_planned_on_gpus(tmp_path: Path) -> None:
    np.save(tmp_path / "z.npy", np.eye(4, dtype=np.float32))
    command = ["-m", "app.mine", f"embeddings={tmp_path / 'z.npy'}", f"out={tmp_path / 'out'}"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "SNIPERFACE_DEVICES": "1"}
    done = run_training(command, PROJECT, environment)
    assert done.returncode == 2, done.stderr
    assert "planned for 1 GPUs here and torch can use 0" in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()


def test_by_hand_on_a_cpu_the_settled_precision_is_told_and_written(small_data: Path, tmp_path: Path) -> None:
    done = train(small_data, tmp_path / "run", "train.epochs=1")
    assert done.returncode == 0, done.stderr
    assert "in fp32 on cpu" in done.stdout
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert written["train"]["precision"] == "fp32"


@pytest.mark.parametrize(
    ("device", "missing", "words"),
    [
        ("cpu", "compiler", "a C++ compiler such as g++"),
        ("cuda", "compiler", "a C compiler such as gcc"),
        ("cuda", "headers", "python3-dev"),
    ],
)
def test_what_compiling_lacks_is_named(
    device: str, missing: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton builds its launcher in C against Python's headers; the CPU's kernels are C++."""
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    bin_folder, include = tmp_path / "bin", tmp_path / "include"
    bin_folder.mkdir()
    include.mkdir()
    for program in ("gcc", "g++") if missing != "compiler" else ():
        (bin_folder / program).write_text("#!/bin/sh\n")
        (bin_folder / program).chmod(0o755)
    if missing != "headers":
        (include / "Python.h").touch()
    monkeypatch.setenv("PATH", str(bin_folder))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(include) if name == "include" else "")
    with pytest.raises(WrongUse) as caught:
        compiler.refuse_without_compiler(device)
    assert words in str(caught.value)
    assert str(caught.value).endswith("or give train.compile=false")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the compiler that fails is a script")
@pytest.mark.skipif(not Path(sysconfig.get_path("include"), "Python.h").is_file(), reason="needs Python's headers")
def test_a_compiler_that_fails_is_one_sentence(tmp_path: Path) -> None:
    """It is found, so its absence is no reason to refuse. Its own words are the reason.

    In a process of its own: torch warns while it compiles, which would be an error here and pass for one of a compiler.
    """
    failing = tmp_path / "g++"
    failing.write_text("#!/bin/sh\ncase $* in *.cpp*|*.hpp*) echo 'error: no space' >&2; exit 1;; esac; echo 12\n")
    failing.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", "from app.runtime import compiler; compiler.refuse_without_compiler('cpu')"],
        cwd=PROJECT,
        env={**os.environ, "CXX": str(failing), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=under_load(120),
    )
    sentence = (
        "train.compile=true does not work on this machine (CppCompileError: C++ compile error: error: no space); "
    )
    assert done.stderr.splitlines()[-1:] == [f"app.errors.WrongUse: {sentence}give train.compile=false"]


STARVED = """
import re, resource, sys
from pathlib import Path
from app import train
pages = int(re.search(r"VmSize:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (pages + (600 << 20), resource.RLIM_INFINITY))
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's: run on Linux")
def test_a_step_that_finds_no_memory_is_one_sentence_with_a_batch_to_try(small_data: Path, tmp_path: Path) -> None:
    """The system refuses a real allocation."""
    words = [*TINY, "train.batch.size=16384", f"data.binary_cache_path={small_data}", f"run.dir={tmp_path / 'run'}"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", STARVED, *words],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert (
        "a step with train.batch.size=16384 in fp32 does not fit into memory; give train.batch.size=8192 "
        "train.batch.grad_accum_steps=2, the same global batch, or backbone.gradient_checkpointing=true"
    ) in done.stdout


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
        RuntimeError("FIND was unable to find an engine to execute this computation"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        torch.distributed.DistBackendError("NCCL error … Last error:\nCuda failure 2 'out of memory'"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] data. DefaultCPUAllocator: not enough memory: you tried"),
    ],
)
def test_what_gpus_say_without_memory_is_known(error: RuntimeError) -> None:
    config = load(["train.batch.size=7"])
    with (
        pytest.raises(OutOfMemory, match=r"train\.batch\.size=7 .*; give backbone\.gradient_checkpointing=true"),
        step_fits(config, torch.device("cpu")),
    ):
        raise error
    with pytest.raises(RuntimeError, match="another"), step_fits(config, torch.device("cpu")):
        raise RuntimeError("another")
