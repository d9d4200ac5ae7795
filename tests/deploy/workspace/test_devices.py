"""Which GPUs count: those that the job's own Python can use, whatever nvidia-smi prints."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.commands.doctor import gpu_finding
from deploy.errors import CannotTrain
from deploy.shell import LocalShell
from deploy.specs.settings import Settings, Target
from deploy.workspace import devices
from deploy.workspace.devices import Devices, Gpu

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the programs are scripts: run on Linux or macOS")

A4500 = Gpu("NVIDIA RTX A4500", (8, 6), 20 << 30)
ROW = "{0}, GPU-5d1f6b2c-0000-4000-8000-00000000000{0}, NVIDIA RTX A4500, 580.65.06"
THREE = "\n".join(ROW.format(number) for number in range(3))
FAILED = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest NVIDIA "
    "driver is installed and running."
)
OLD = "CUDA initialization: The NVIDIA driver on your system is too old (found version 12040). Please update your GPU"
# A stand-in for torch. TORCH_GPUS: number of GPUs; TORCH_BROKEN: those that cannot run a kernel.
TORCH = f"""
import os, types, warnings
__version__ = "2.13.0+cu130"
version = types.SimpleNamespace(cuda=os.environ.get("TORCH_CUDA", "13.0") or None)
class OutOfMemoryError(RuntimeError): pass
class cuda:
    @staticmethod
    def is_available():
        if os.environ.get("TORCH_OLD"):
            warnings.warn({OLD!r})
            return False
        return cuda.device_count() > 0
    @staticmethod
    def device_count():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        count = int(os.environ.get("TORCH_GPUS", "0"))
        return count if visible is None else min(count, len([each for each in visible.split(",") if each]))
    get_device_name = staticmethod(lambda index: "NVIDIA RTX A4500")
    get_device_properties = staticmethod(
        lambda index: types.SimpleNamespace(major=8, minor=6, total_memory={20 << 30}))
class arange(float):
    def __new__(cls, count, device):
        if device in os.environ.get("TORCH_BROKEN", "").split(","):
            raise RuntimeError("CUDA error: no kernel image is available for execution on the device\\nCUDA kernel")
        if device in os.environ.get("TORCH_FULL", "").split(","):
            raise OutOfMemoryError("CUDA out of memory")
        return super().__new__(cls, 6.0)
    def __mul__(self, other): return arange.twice
class _Sum:
    def sum(self): return 12.0
arange.twice = _Sum()
"""

Look = Callable[..., Devices]


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Look:
    """Query this Python with a stand-in for nvidia-smi, which prints `said` and exits with `code`, and one for torch.

    Without `said` there is no nvidia-smi. `env` configures the stand-in for torch.
    """
    (tmp_path / "torch.py").write_text(TORCH)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def ask(said: str | None = None, code: int = 0, hangs: bool = False, **env: str) -> Devices:
        if said is not None:
            smi = tmp_path / "bin" / "nvidia-smi"
            smi.parent.mkdir(exist_ok=True)
            script = (
                f"import sys, time\nprint({said!r}, flush=True)\ntime.sleep({600 if hangs else 0})\nsys.exit({code})"
            )
            smi.write_text(f"#!{sys.executable}\n{script}\n")
            smi.chmod(0o755)
            monkeypatch.setenv("PATH", str(smi.parent), prepend=os.pathsep)
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        return devices.ask(LocalShell(), sys.executable, tmp_path)

    return ask


def test_a_machine_with_nothing_of_nvidias_is_asked_without_torch(look: Look) -> None:
    """A try-out on a laptop does not pay for an import of torch."""
    assert look() == Devices()


def test_three_cards_that_torch_can_use(look: Look) -> None:
    assert look(THREE, TORCH_GPUS="3") == Devices(
        (A4500, A4500, A4500), 3, None, "2.13.0+cu130", "13.0", "580.65.06", None
    )


@pytest.mark.parametrize(
    ("said", "code", "words"),
    [
        (FAILED, 9, "nvidia-smi failed with exit code 9: NVIDIA-SMI has failed because it couldn't communicate"),
        ("No devices were found", 6, "nvidia-smi failed with exit code 6: No devices were found."),
        ("", 255, "it printed nothing."),
        (FAILED, 0, "nvidia-smi printed no list of GPUs: NVIDIA-SMI has failed"),
        ("<html>\n\n500", 0, "no list of GPUs: <html>."),
        (f"{THREE}\nUnable to determine the device handle for GPU 0000:41:00.0", 0, "no list of GPUs"),
        ("x" * 100_000, 0, "no list of GPUs: xxx"),
    ],
)
def test_what_is_no_list_counts_as_no_gpu_and_its_words_are_kept(look: Look, said: str, code: int, words: str) -> None:
    found = look(said, code)
    assert (found.gpus, found.listed) == ((), None)
    assert words in (found.why or "")
    assert len(found.why or "") < 700
    assert "\n" not in (found.why or "")


def test_a_driver_that_hangs_is_not_waited_for(look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = tmp_path / "devices.py"
    quick.write_text(devices.PROBE.read_text().replace("SMI_S = 20.0", "SMI_S = 0.5"))
    monkeypatch.setattr(devices, "PROBE", quick)
    began = time.monotonic()
    found = look("", hangs=True)
    assert "nvidia-smi did not answer within 0.5 s" in (found.why or "")
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    "rows",
    [
        "0, GPU-1, NVIDIA A100-SXM4-80GB, 580.65.06\n1, MIG-a3-b, NVIDIA A100-SXM4-80GB MIG 1g.10gb, 580.65.06",
        "0, [N/A], NVIDIA GB10, [N/A]\n1, GPU-22, Name, with comma, 580.65.06",
    ],
)
def test_slices_and_what_is_not_told_are_rows_too(look: Look, rows: str) -> None:
    found = look(rows, TORCH_GPUS="2")
    assert (found.listed, len(found.gpus), found.why) == (2, 2, None)


def test_torchs_own_word_about_the_driver_is_the_reason(look: Look) -> None:
    """On a pod with an old driver, nvidia-smi lists three GPUs and torch can use none."""
    found = look(THREE.replace("580.65.06", "550.54.14"), TORCH_GPUS="3", TORCH_OLD="1")
    assert (found.gpus, found.listed, found.driver) == ((), 3, "550.54.14")
    assert found.why == OLD.partition(" Please")[0]
    words = devices.fault(found, "auto")
    assert words is not None
    assert "has 3 GPUs and torch can use 0 (torch 2.13.0+cu130, CUDA 13.0, NVIDIA driver 550.54.14)" in words


def test_a_card_that_cannot_compute_is_left_out_and_named(look: Look) -> None:
    found = look(THREE, TORCH_GPUS="3", TORCH_BROKEN="cuda:1")
    assert (len(found.gpus), found.listed) == (2, 3)
    assert found.why == (
        "torch cannot compute on GPU 1, NVIDIA RTX A4500: CUDA error: no kernel image is available for execution on "
        "the device CUDA kernel."
    )


def test_a_card_that_another_job_fills_is_there(look: Look) -> None:
    assert len(look(THREE, TORCH_GPUS="3", TORCH_FULL="cuda:0").gpus) == 3


def test_cards_that_are_hidden_do_not_count(look: Look) -> None:
    """A job gets one rank per GPU that it can see, not per GPU in the machine."""
    found = look(THREE, TORCH_GPUS="3", CUDA_VISIBLE_DEVICES="2")
    assert (len(found.gpus), found.listed, devices.fault(found, "auto")) == (1, 3, None)


@pytest.mark.parametrize(
    ("visible", "usable", "words"),
    [
        ("0,1", 2, None),
        ("GPU-5d1f6b2c,GPU-aaaa", 2, None),
        ("MIG-5d1f6b2c,MIG-6e2a", 1, None),  # CUDA gives a process one slice
        ("", 0, None),  # hidden on purpose
        ("-1", 0, None),
        ("none", 0, None),
        ("1,-1,2", 1, None),  # CUDA reads up to the first that is none
        ("0,1", 0, "CUDA_VISIBLE_DEVICES=0,1 names 2 GPUs and torch can use 0"),
        ("GPU-5d1f6b2c", 0, "names 1 GPU and torch can use 0"),
        ("MIG-5d1f6b2c", 0, "names 1 GPU and torch can use 0"),
        ("0,7", 1, "names 2 GPUs and torch can use 1"),
    ],
)
def test_visible_gpus_that_torch_cannot_use_are_a_fault(visible: str, usable: int, words: str | None) -> None:
    """A machine whose driver fails must not train on its CPU because a variable names some of its GPUs."""
    found = replace(SEES_NONE, gpus=(A4500,) * usable, visible=visible)
    why = devices.fault(found, "auto")
    assert (why is None) == (words is None)
    assert (words or "") in (why or "")
    assert devices.fault(replace(found, cuda=None), "auto", is_here=True) is None  # torch for CPUs, on a laptop
    assert devices.fault(found, "cpu") is None


def test_a_torch_that_is_broken_is_a_reason(look: Look, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')")
    found = look(THREE)
    assert found.gpus == ()
    assert "libcudart.so.13" in (found.why or "")


SEES_NONE = Devices((), 3, None, "2.13.0+cu130", "13.0", "550.54.14", "The NVIDIA driver is too old.")
WITHOUT_CUDA = Devices((), 1, None, "2.13.0+cpu", None, "580.65.06", "torch 2.13.0+cpu is built without CUDA.")
SMI_FAILS = Devices((), None, None, "2.13.0+cu130", "13.0", None, "nvidia-smi failed with exit code 9: it has failed.")
NO_DEVICES = Devices((), None, None, "2.13.0+cu130", "13.0", None, "nvidia-smi failed: No devices were found.")
ONE = Devices((A4500,), 1, None, "2.13.0+cu130", "13.0", "580.65.06", None)


@pytest.mark.parametrize(
    ("found", "device", "promised", "is_here", "words"),
    [
        (Devices(), "auto", None, False, None),
        (Devices(), "auto", 1, False, "1 GPU is paid for and torch can use 0"),
        (Devices(), "cuda", None, True, "device: cuda"),
        (Devices(), "cpu", 1, False, None),
        (ONE, "auto", 1, False, None),
        (ONE, "cuda", None, True, None),
        (ONE, "auto", 2, False, "2 GPUs are paid for and torch can use 1"),
        (SEES_NONE, "auto", None, False, "has 3 GPUs and torch can use 0"),
        (SEES_NONE, "auto", None, True, "has 3 GPUs and torch can use 0"),
        (SEES_NONE, "cpu", 3, False, None),
        (WITHOUT_CUDA, "auto", None, True, None),  # a laptop with a CPU build of torch: it says so and trains
        (WITHOUT_CUDA, "auto", None, False, "built without CUDA"),
        (SMI_FAILS, "auto", None, True, None),
        (SMI_FAILS, "auto", None, False, "torch can use no GPU"),
        (NO_DEVICES, "auto", None, False, None),
    ],
)
def test_who_may_train(found: Devices, device: str, promised: int | None, is_here: bool, words: str | None) -> None:
    why = devices.fault(found, device, promised=promised, is_here=is_here)
    assert (why is None) == (words is None)
    assert (words or "") in (why or "")


def test_the_doctor_and_the_refusal_give_the_reason() -> None:
    target = Target("box", "ssh", "~/x")
    problem = gpu_finding(SEES_NONE, target)
    assert (problem.level, "driver is too old" in problem.found, "device: cpu" in (problem.fix or "")) == (
        "problem", True, True,
    )  # fmt: skip
    assert gpu_finding(ONE, target).found.startswith("1 GPU: NVIDIA RTX A4500 20 GiB (torch 2.13.0+cu130, CUDA 13.0")
    note = gpu_finding(SMI_FAILS, target, is_here=True)
    assert (note.level, "exit code 9" in note.found) == ("warning", True)


def test_a_build_for_cpus_beside_a_gpu_is_named_with_the_way_to_the_other() -> None:
    """As pip installs it on Windows."""
    target = Target("local", "local", "x")
    cpu = Devices(listed=1, torch="2.13.0+cpu", driver="580.1", why="torch 2.13.0+cpu is built without CUDA.")
    told = gpu_finding(cpu, target, is_here=True)
    assert told.found == "1 GPU is not used (torch 2.13.0+cpu is built without CUDA.): training uses the CPU"
    assert "docs/machines.md, section Windows" in str(told.fix)


def test_what_is_seen_here_is_what_the_plan_counts(look: Look, tmp_path: Path) -> None:
    settings = Settings(tmp_path, Target("local", "local", "x"))
    look(THREE, TORCH_GPUS="3")
    hardware = devices.here(LocalShell(), settings)
    assert (hardware.gpus, hardware.gpu, hardware.gpu_memory_bytes) == (3, "NVIDIA RTX A4500", 20 << 30)
    assert hardware.capability == (8, 6)
    on_cpu = devices.here(LocalShell(), Settings(tmp_path, Target("local", "local", "x", device="cpu")))
    assert (on_cpu.gpus, on_cpu.gpu, on_cpu.why) == (0, None, "device: cpu in the target's file")
    look(THREE, TORCH_OLD="1")
    with pytest.raises(CannotTrain, match="has 3 GPUs and torch can use 0"):
        devices.here(LocalShell(), settings)


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "[]", "{}", '{"gpus": 3}', json.dumps({"gpus": [{}]}),
        json.dumps({"gpus": [{"name": "a", "capability": [8], "memory_bytes": 1}], "listed": None}),
    ],
)  # fmt: skip
def test_an_answer_of_another_kind_is_no_answer(text: str) -> None:
    assert devices.parse(text) is None


FAISS = """
import numpy
__version__ = "1.15.1"
class IndexFlatIP:
    def __init__(self, size): self.on_gpu = False
    def add(self, vectors): self.vectors = vectors
    def search(self, vectors, count):
        if self.on_gpu:
            raise RuntimeError("CUDA error 209 no kernel image is available for execution on the device\\nat Foo.cu")
        return None, numpy.argsort(-(vectors @ self.vectors.T))[:, :count]
def index_cpu_to_gpu(resources, number, index):
    index.on_gpu = True
    return index
StandardGpuResources = object
get_num_gpus = lambda: {gpus}
"""


@pytest.mark.parametrize(
    ("gpus", "said"),
    [
        (0, "1.15.1, on the CPU"),
        (1, "note: 1.15.1 fails on a GPU (CUDA error 209 no kernel image is available for execution on the device): "
            "mining searches with torch there, unless mining.backend=faiss is set"),
    ],
)  # fmt: skip
def test_a_search_that_fails_on_the_card_is_a_note_with_the_way_that_is_left(
    gpus: int, said: str, tmp_path: Path
) -> None:
    (tmp_path / "faiss.py").write_text(FAISS.replace("{gpus}", str(gpus)))
    ask = (
        "import sys; sys.path[:0] = sys.argv[1:]\nfrom deploy.pod.image import selftest\n"
        "try: print(selftest.faiss())\nexcept selftest.Note as note: print(f'note: {note}')"
    )
    argv = [sys.executable, "-c", ask, str(tmp_path), str(devices.PROBE.parents[3])]
    assert LocalShell().run(argv).text.strip() == said


@pytest.mark.parametrize(
    "field", ['"listed": 1e999', '"gpus": [{"name": "a", "capability": [8, 6], "memory_bytes": 1e999}]']
)
def test_an_infinite_number_is_no_answer(field: str) -> None:
    rest = '"gpus": [], "listed": 0, "visible": null, "torch": null, "cuda": null, "driver": null, "why": null'
    assert devices.parse(f"{{{rest}}}") is not None
    assert devices.parse(f"{{{rest}, {field}}}") is None
