"""The plan is a value: the same facts give the same plan, and a test compares all of it."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from datetime import datetime
from pathlib import Path, PurePosixPath

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from deploy.errors import WrongUse
from deploy.pod.agent.environment import MEANT
from deploy.pod.base.limits import Limits, parse
from deploy.specs.estimate import NAMES, Measured, Phase
from deploy.specs.facts import CodeFacts, Continuation, DataFacts, Facts
from deploy.specs.machine import Card, Hardware, Image, Machine
from deploy.specs.plan import Plan, make
from deploy.specs.request import Request, hydra_override, parse_request
from deploy.specs.settings import Settings, Ssh, Target
from deploy.ui.plan_table import plan_rows
from tests.deploy.conftest import SOURCE
from tests.support.forks import run_training

CONFIG = {
    "recipe": {"name": "self_supervised"},
    "backbone": {"name": "iresnet"},
    "train": {"epochs": 20, "batch": {"size": 32}},
    "plan": {"images_per_s": 50},
}
PROJECT = Path("/home/me/Faces & more")
SETTINGS = Settings(PROJECT, Target("local", "local", ".sniperface/local"))
DATA = DataFacts("orl", str(PROJECT / "data/orl/images.npy"), 400, 300, 15_000_000, "abc")
FACTS = Facts(
    now=datetime(2026, 11, 21, 20, 30, 45),
    token="3f2a",
    python="/venv/bin/python",
    code=CodeFacts("git", "c0ffee", 2, None),
    data=DATA,
    config=CONFIG,
    hardware=Hardware(gpus=0, cores=8),
)
UTF8 = {"PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8"}
ALLOCATOR = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
ROOT = PROJECT / ".sniperface/local"
RUN = ROOT / "runs/orl-20261121-203045-3f2a"


def test_the_whole_plan() -> None:
    """The plan contains every decision."""
    request = Request()
    assert make(SETTINGS, request, FACTS, tryout=True) == Plan(
        run_id="orl-20261121-203045-3f2a",
        attempt=1,
        target="local",
        provider="local",
        machine="sniperface-faces_more-local-orl-20261121-203045-3f2a",
        created="2026-11-21T20:30:45.000",
        root=str(ROOT),
        run_dir=str(RUN),
        busy_lock=str(ROOT / "busy.lock"),
        code=CodeFacts("git", "c0ffee", 2, None),
        snapshot=None,
        data=DATA,
        data_path=DATA.path,
        stage=False,
        fraction=1.0,
        recipe="self_supervised",
        backbone={"name": "iresnet"},
        epochs=20,
        batch_size=32,
        overrides=("experiment=tryout",),
        resume="none",
        precision="fp32",
        memory=None,
        gpu=None,
        gpus=0,
        no_gpu=None,
        cores=8,
        processes=2,
        nodes=1,
        place=None,
        argv=(
            *("/venv/bin/python", "-m", "torch.distributed.run", "--standalone"),
            *("--local-addr=127.0.0.1", "--nproc-per-node=2"),
            *("-m", "app.train", "experiment=tryout"),
            f"data.binary_cache_path='{DATA.path}'",
            "data.data_fraction=1.0",
            "train.resume='none'",
            f"run.dir='{RUN}'",
            "run.commit='c0ffee'",
        ),
        cwd=str(ROOT / "code/<snapshot>"),
        env={
            "SNIPERFACE_SUPERVISED": "1",
            "OMP_NUM_THREADS": "4",
            "SNIPERFACE_DEVICES": "0",
            "PYTHONUNBUFFERED": "1",
            **UTF8,
            **ALLOCATOR,
        },
        queue=False,
        grace_s=60,
        join_s=180,
        limits=Limits(max_restarts=3),
        usd_per_hour=0.0,
        phases=tuple(
            Phase(name, 60.0 if name == "training" else None, 0.0 if name == "training" else None) for name in NAMES
        ),
        expected_minutes=1.0,
        expected_from="a guess: there is no earlier run here, so the speed is that of another computer",
        expected_usd=0.0,
        request=request,
    )


# Torch is loaded already, so the host gets its name in a process, not before one.
NAMED = """
import ctypes, os, socket, sys
from tests.support.fork_server import fork_ranks, run_python
assert ctypes.CDLL(None).unshare(0x04000000) == 0  # CLONE_NEWUTS
socket.sethostname("nowhere.invalid")
fork_ranks(sys.argv[1:])
run_python(sys.argv[1:], dict(os.environ))
"""
MEETS = """
import socket, torch, torch.distributed
torch.distributed.init_process_group("gloo")
assert socket.gethostname() == "nowhere.invalid"
both = torch.ones(1)
torch.distributed.all_reduce(both)
assert both == 2
torch.distributed.destroy_process_group()
"""


def test_one_process_trains_on_windows_unless_told() -> None:
    """Torch has no NCCL there."""
    gpus = Hardware(2, 16, gpu="NVIDIA RTX 4090", gpu_memory_bytes=24 << 30, capability=(8, 9))
    for hardware in (FACTS.hardware, gpus):
        facts = dataclasses.replace(FACTS, windows=True, hardware=hardware)
        plan = make(SETTINGS, Request(), facts, tryout=True)
        assert (plan.processes, plan.argv.count("--nproc-per-node=1")) == (1, 1)


@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="needs Linux and root: another host name")
def test_ranks_meet_where_the_name_of_the_host_is_unknown(tmp_path: Path) -> None:
    """torchrun would take the host's full name, and wait for minutes."""
    argv = make(SETTINGS, Request(), FACTS, tryout=True).argv
    (tmp_path / "meets.py").write_text(MEETS)
    launcher = [*argv[1 : argv.index("app.train") - 1], str(tmp_path / "meets.py")]
    done = run_training(["-c", NAMED, *launcher], SOURCE, os.environ, limit_s=40)
    assert done.returncode == 0, done.stderr


LACKS_LIBUV = """
import sys, torch.distributed.run, torch.distributed.elastic.rendezvous.c10d_rendezvous_backend
Store = torch.distributed.TCPStore
class OfWindows(Store):
    def __init__(self, *args, use_libuv=True, **named):
        if use_libuv:
            raise torch.distributed.DistStoreError("requested but PyTorch was built without libuv support")
        super().__init__(*args, use_libuv=False, **named)
for module in list(sys.modules.values()):
    if getattr(module, "TCPStore", None) is Store:
        module.TCPStore = OfWindows
"""
LAUNCHES = """
import os
from tests.support.fork_server import fork_ranks, run_python
fork_ranks(sys.argv[1:])
run_python(sys.argv[1:], dict(os.environ))
"""
MEETS_THERE = """
torch.distributed.init_process_group("gloo")
both = torch.ones(1)
torch.distributed.all_reduce(both)
assert both == 2
torch.distributed.destroy_process_group()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX: a server that forks")
@pytest.mark.parametrize("windows", [False, True])
def test_ranks_meet_where_torch_was_built_without_libuv(tmp_path: Path, windows: bool) -> None:
    """Torch's packages for Windows are, and torchrun requests libuv for the stores that it makes itself.

    So does torch 2.13.0 for Windows: each local `invoke train` ended with this error there.
    """
    two = dataclasses.replace(SETTINGS, target=dataclasses.replace(SETTINGS.target, processes=2))
    plan = make(two, Request(), dataclasses.replace(FACTS, windows=windows), tryout=True)
    (tmp_path / "meets.py").write_text(LACKS_LIBUV + MEETS_THERE)
    launcher = [*plan.argv[1 : plan.argv.index("app.train") - 1], str(tmp_path / "meets.py")]
    env = {**os.environ, **plan.env, "USE_LIBUV": "0"}  # as ranks on Windows have it by default
    done = run_training(["-c", LACKS_LIBUV + LAUNCHES, *launcher], SOURCE, env, limit_s=40)
    assert (done.returncode == 0) == windows, done.stderr
    assert windows or "without libuv" in done.stderr


def test_the_job_is_told_how_many_gpus_it_must_find() -> None:
    """Before the machine is queried, the variable is not set."""
    a4500 = Hardware(3, 24, gpu="NVIDIA RTX A4500", gpu_memory_bytes=20 << 30, capability=(8, 6))
    for hardware, told in ((a4500, "3"), (FACTS.hardware, "0"), (None, None)):
        plan = make(SETTINGS, Request(), dataclasses.replace(FACTS, hardware=hardware), tryout=True)
        assert plan.env.get("SNIPERFACE_DEVICES") == told


@pytest.mark.parametrize(
    ("wish", "hardware", "card", "precision"),
    [
        ("auto", Hardware(0, 8), None, "fp32"),
        ("auto", Hardware(3, 8, gpu="NVIDIA RTX A4500", capability=(8, 6)), None, "bf16"),
        ("auto", Hardware(1, 8, gpu="Tesla T4", capability=(7, 5)), None, "fp16"),
        ("auto", None, Card("NVIDIA RTX A4500", 1, 20 << 30), "bf16"),
        ("auto", None, Card("Tesla V100-PCIE-16GB", 1, 16 << 30), "fp16"),
        ("auto", None, None, "auto"),
        ("fp16", Hardware(0, 8), None, "fp16"),
    ],
)
def test_the_plan_tells_the_precision(wish: str, hardware: Hardware, card: Card | None, precision: str) -> None:
    config = {**CONFIG, "train": {**CONFIG["train"], "precision": wish}}
    facts = dataclasses.replace(FACTS, config=config, hardware=hardware, card=card)
    assert make(SETTINGS, Request(), facts, tryout=True).precision == precision


@pytest.mark.parametrize(("rented", "told"), [(True, "not allocated yet"), (False, "looked at when the run starts")])
def test_a_plan_tells_a_machine_to_be_had_from_one_that_is_not_asked_yet(rented: bool, told: str) -> None:
    plan = make(SETTINGS, Request(), dataclasses.replace(FACTS, hardware=None), tryout=True)
    edited = dataclasses.replace(plan.code, kind="git", commit="1234567", changed_files=1)
    rows = dict(plan_rows(dataclasses.replace(plan, rented=rented, code=edited)))
    assert f"the machine is {told}" in rows["where"]
    assert rows["code"] == "commit 1234567 plus 1 changed file"


def test_a_plan_names_the_rented_machine_that_is_used_again() -> None:
    """Neither an image nor an environment is made then, so the plan names none."""
    image = Image("me/x:cuda", has_environment=False)
    for warm, where in (("sniperface-faces-far-orl", "machine sniperface-faces-far-orl is there already"), (None, "")):
        facts = dataclasses.replace(FACTS, hardware=None, image=image, warm=warm)
        rows = dict(plan_rows(make(SETTINGS, Request(), facts, tryout=True)))
        assert where in rows["where"]
        assert ("environment" in rows, "image" in rows) == (warm is None, warm is None)


@pytest.mark.parametrize(
    ("image", "row"),
    [(None, None), ("sniperface:cpu-0123", "sniperface:cpu-0123"), ("", "none yet of this environment")],
)
def test_a_plan_names_the_image_of_a_container(image: str | None, row: str | None) -> None:
    plan = make(
        SETTINGS, Request(), dataclasses.replace(FACTS, image=None if image is None else Image(image)), tryout=True
    )
    told = dict(plan_rows(plan)).get("image")
    assert (told is None) == (row is None)
    assert row is None or str(told).startswith(row)


def test_a_plan_is_json() -> None:
    """The plan is written to the run folder, where the supervisor reads it."""
    plan = make(SETTINGS, parse_request(target="local", fraction="0.5"), FACTS, tryout=True)
    told = json.loads(json.dumps(plan.to_json()))
    assert told["request"]["given"] == ["fraction"]
    assert told["limits"] == {
        "max_restarts": 3, "max_hours": None, "max_usd": None, "idle_min": None, "stall_min": None, "sync_to": None,
        "on_end": "keep", "paid_since": None, "usd_per_hour": 0.0, "release": "none",
    }  # fmt: skip
    assert parse(told["limits"]) == plan.limits


def test_labels_to_learn_are_read_where_they_are_or_beside_staged_images() -> None:
    """With `--recipe supervised` the default experiment is tryout_supervised."""
    labels = str(Path("/home/me/pseudo_ids.npy"))
    facts = dataclasses.replace(FACTS, data=dataclasses.replace(FACTS.data, train_labels=labels))
    request = parse_request(target="local", recipe="supervised", labels="pseudo_ids.npy")
    plan = make(SETTINGS, request, facts, tryout=True)
    assert plan.overrides == ("experiment=tryout_supervised", "recipe=supervised")
    assert f"data.train_labels_path='{labels}'" in plan.argv
    staging = dataclasses.replace(SETTINGS, target=dataclasses.replace(SETTINGS.target, stage_to="/dev/shm"))
    plan = make(staging, request, facts, tryout=True)
    assert any(word.endswith(f"{Path('/dev/shm/train_labels.npy')}'") for word in plan.argv)
    with pytest.raises(WrongUse, match="differ"):
        parse_request(target="local", labels="a.npy", overrides=["data.train_labels_path=b.npy"])


def test_what_only_the_machine_can_tell_is_settled_later() -> None:
    """A plan made again from more facts keeps every earlier decision."""
    settings = Settings(SETTINGS.project, Target("box", "ssh", "~/faces", stage_to="/dev/shm", options=Ssh(host="box")))
    unseen = dataclasses.replace(FACTS, hardware=None, python="python")
    first = make(settings, Request(target="box"), unseen, tryout=True)
    assert (first.gpus, first.processes, first.run_dir[:7]) == (None, None, "~/faces")
    assert "--nproc-per-node=<one per GPU>" in first.argv
    machine = Machine("sniperface-box", PurePosixPath("/home/me/faces"), "/venv/bin/python")
    seen = dataclasses.replace(
        unseen, machine=machine, python=machine.python, hardware=Hardware(3, 24), snapshot="abc123",
        data_path=PurePosixPath("/home/me/faces/data/orl/images.npy"),
    )  # fmt: skip
    second = make(settings, Request(target="box"), seen, tryout=True)
    assert second.run_id == first.run_id
    assert (second.gpus, second.processes, second.machine) == (3, 3, "sniperface-box")
    assert (second.cwd, second.root) == ("/home/me/faces/code/abc123", "/home/me/faces")
    assert second.argv[0] == "/venv/bin/python"
    assert "data.binary_cache_path='/home/me/faces/data/orl/images.npy'" in second.argv


@pytest.mark.parametrize(
    ("gpus", "shm_bytes", "disabled"),
    [
        (2, 64 << 20, True),  # a container's default, as on rented clusters
        (2, None, False),  # unknown
        (2, 256 << 20, False),
        (8, 2 << 30, False),
        (1, 64 << 20, False),  # one GPU exchanges nothing
        (0, 64 << 20, False),
    ],
)
def test_nccl_does_not_use_a_tiny_shm(gpus: int, shm_bytes: int | None, disabled: bool) -> None:
    """NCCL's 10 MB per channel do not fit there: the job would end with "No space left on device"."""
    hardware = Hardware(gpus, 8, shm_bytes=shm_bytes)
    plan = make(SETTINGS, Request(), dataclasses.replace(FACTS, hardware=hardware), tryout=True)
    assert plan.env.get("NCCL_SHM_DISABLE") == ("1" if disabled else None)


@pytest.mark.parametrize(
    ("hardware", "asked", "processes", "threads"),
    [
        (Hardware(0, 1), None, 1, "1"),
        (Hardware(0, 2), None, 2, "1"),
        (Hardware(0, 16), None, 2, "8"),
        (Hardware(4, 16), None, 4, "4"),
        (Hardware(0, 16), 5, 5, "3"),
    ],
)
def test_processes_follow_the_machine(hardware: Hardware, asked: int | None, processes: int, threads: str) -> None:
    """One per GPU. Without a GPU two, or one on a single core. A number in the target's file wins."""
    settings = dataclasses.replace(SETTINGS, target=dataclasses.replace(SETTINGS.target, processes=asked))
    plan = make(settings, Request(), dataclasses.replace(FACTS, hardware=hardware), tryout=True)
    assert (plan.processes, plan.env["OMP_NUM_THREADS"]) == (processes, threads)


def test_a_fraction_is_in_the_name_and_in_the_command() -> None:
    """A run with 1 % of the data must not be mistaken for a full run."""
    plan = make(SETTINGS, Request(fraction=0.01), FACTS, tryout=False)
    assert plan.run_id == "orl-f0.01-20261121-203045-3f2a"
    assert "data.data_fraction=0.01" in plan.argv


def test_staged_data_has_its_known_place() -> None:
    """The whole data set is <folder>/images.npy, as in the users' notes. A part has its own folder beside it."""
    settings = dataclasses.replace(SETTINGS, target=dataclasses.replace(SETTINGS.target, stage_to="/dev/shm"))
    assert make(settings, Request(), FACTS, tryout=False).data_path == str(Path("/dev/shm/images.npy"))
    part = make(settings, Request(fraction=0.01), FACTS, tryout=False)
    assert part.data_path == str(Path("/dev/shm/orl-f0.01/images.npy"))


def test_a_run_that_goes_on_keeps_its_name() -> None:
    """The continued run has the same folder and the next attempt number."""
    plan = make(
        SETTINGS, Request(), dataclasses.replace(FACTS, continues=Continuation("old-run", 3, "auto")), tryout=True
    )
    assert (plan.run_id, plan.attempt, plan.resume) == ("old-run", 3, "auto")
    assert "train.resume='auto'" in plan.argv


def test_a_named_checkpoint_travels_into_the_run_folder() -> None:
    """The run can then be explained from its folder."""
    plan = make(SETTINGS, Request(resume="/home/me/old.pt"), FACTS, tryout=True)
    assert plan.resume == str(RUN / "resume_from/old.pt")


def test_measured_runs_beat_a_guess() -> None:
    """Once the machine is known, runs on such a machine count; before that, all runs on the target."""
    slow, fast = Measured(10.0, 30, "8 cores"), Measured(1000.0, 30, "1 x NVIDIA A40")
    facts = dataclasses.replace(FACTS, measured=[fast, slow])
    plan = make(SETTINGS, Request(), facts, tryout=True)
    assert plan.expected_minutes == pytest.approx(300 * 20 / 10 / 60 + 0.5)
    assert plan.expected_from == "measured: earlier runs like this one on such a machine (8 cores)"
    brief = dataclasses.replace(facts, measured=[dataclasses.replace(slow, is_most=True)])
    assert make(SETTINGS, Request(), brief, tryout=True).expected_from.endswith("counts its start for each epoch")
    unseen = make(SETTINGS, Request(), dataclasses.replace(facts, hardware=None), tryout=True)
    assert unseen.expected_from.endswith("on this target")
    other = dataclasses.replace(facts, hardware=Hardware(1, 8, gpu="NVIDIA H100"), config={**CONFIG, "plan": None})
    new = make(SETTINGS, Request(), other, tryout=True)
    assert (new.expected_minutes, new.expected_from) == (
        None, "no earlier run like this one on such a machine (1 x NVIDIA H100)",
    )  # fmt: skip


def test_an_experiment_of_the_users_is_not_overruled() -> None:
    """experiment=tryout is only a default."""
    plan = make(SETTINGS, Request(overrides=("experiment=mine",)), FACTS, tryout=True)
    assert plan.overrides == ("experiment=mine",)


@pytest.mark.parametrize("text", ["0", "1.5", "nan", "abc", "-1", "inf", "", "1e999", "1%"])
def test_a_wrong_fraction_is_refused(text: str) -> None:
    """The error names the value and one that works."""
    with pytest.raises(WrongUse) as caught:
        parse_request(target="local", fraction=text)
    assert f"--fraction {text} " in caught.value.message
    assert "0.01" in caught.value.message


def test_keys_with_a_flag_may_be_set_as_keys() -> None:
    """The users' old keys work. Two different values for one setting are refused."""
    request = parse_request(
        target="local", overrides=["data.data_fraction=0.25", "data.binary_cache_path='/a b.npy'", "train.epochs=3"]
    )
    assert (request.fraction, request.data, request.overrides) == (0.25, "/a b.npy", ("train.epochs=3",))
    with pytest.raises(WrongUse, match="differ"):
        parse_request(target="local", fraction="0.5", overrides=["data.data_fraction=0.25"])
    with pytest.raises(WrongUse, match="decided by the launcher"):
        parse_request(target="local", overrides=["run.dir=/tmp/x"])
    with pytest.raises(WrongUse, match="key=value"):
        parse_request(target="local", overrides=["train.epochs"])


@given(
    st.text(
        alphabet=st.one_of(
            st.sampled_from("\\'\"${}=,: []()%#~é"), st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])
        ),
        min_size=1,
    )
)
def test_hydra_reads_back_every_path(value: str) -> None:
    """The app receives exactly the given path."""
    parsed = OverridesParser.create().parse_override(hydra_override("data.binary_cache_path", value)).value()
    assert OmegaConf.create({"path": str(parsed)}).path == value


def test_a_pythonpath_of_the_request_is_one_that_is_meant() -> None:
    """An environment that is made on a machine ignores the one of the login there."""
    plan = make(SETTINGS, parse_request(env=["PYTHONPATH=/mine", "A=b"]), FACTS, tryout=True)
    assert {name: plan.env.get(name) for name in ("PYTHONPATH", "A", MEANT)} == {
        "PYTHONPATH": "/mine", "A": "b", MEANT: "1"
    }  # fmt: skip
    assert MEANT not in make(SETTINGS, parse_request(env=["A=b"]), FACTS, tryout=True).env
