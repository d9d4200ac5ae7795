"""GPU memory of a training step: computed from measured figures, shown in the plan, refused before anything costs."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.errors import WrongUse
from deploy.specs import memory
from tests.deploy.conftest import Project
from tests.support.emulators.runpod import KEY, Emulator

GIB = 1 << 30
SHAPE = {"name": "iresnet", "layers": [3, 4, 14, 3], "width": 64, "embedding_dim": 512}
TABLE = {
    "iresnet50": {
        "shape": SHAPE,
        "image_size": 112,
        "params": 43_590_848,
        "gradient_checkpointing": False,
        "saved_mib_per_image": {"fp32": 67.5, "half": 33.8},
        "switched_mib_per_image": {"fp32": 30.0, "half": 15.05},
        "saved_mib_fixed": {"fp32": 0.15, "half": 58.64},
    }
}
CONFIG: dict[str, Any] = {
    "recipe": {
        "name": "self_supervised",
        "moco": {"projection_hidden": 2048, "projection_dim": 128, "queue_size": 65536},
    },
    "backbone": {**SHAPE, "image_size": 112, "patch_size": 9, "gradient_checkpointing": False},
    "train": {"batch": {"size": 384, "grad_accum_steps": 1}, "optimizer": {"name": "sgd"}},
}


def config(**changed: Any) -> dict[str, Any]:
    """CONFIG with `batch`, `backbone`, `recipe` or `optimizer` changed."""
    made = copy.deepcopy(CONFIG)
    for part, values in changed.items():
        place = made["train"][part] if part in made["train"] else made[part]
        place.update(values)
    return made


def gib(made: dict[str, Any], precision: str) -> float:
    need = memory.of_step(made, TABLE, precision, None)
    assert need.needed_bytes is not None
    return need.needed_bytes / GIB


def test_the_users_own_command_on_their_own_card() -> None:
    """384 images fit into an RTX A4500 in 16 bits, but not in fp32."""
    half, whole = (memory.of_step(CONFIG, TABLE, precision, 20 * GIB) for precision in ("bf16", "fp32"))
    assert not half.is_too_much
    assert whole.is_too_much
    assert whole.fits == (192, 2)
    with pytest.raises(WrongUse) as caught:
        memory.refuse_too_much(whole, CONFIG, "NVIDIA RTX A4500")
    assert "a step with train.batch.size=384 needs about 31" in caught.value.message
    assert "NVIDIA RTX A4500 has 20.0 GiB" in caught.value.message
    assert "--set train.batch.size=192 --set train.batch.grad_accum_steps=2" in caught.value.message
    assert caught.value.exit_code == 2
    memory.refuse_too_much(half, CONFIG, "NVIDIA RTX A4500")


def test_each_part_counts() -> None:
    """Saved activations are most of it, and never less than measured."""
    assert gib(CONFIG, "fp32") > 384 * 67.5 / 1024
    assert gib(CONFIG, "bf16") == gib(CONFIG, "fp16")
    assert gib(config(backbone={"image_size": 56}), "bf16") < gib(CONFIG, "bf16") / 2
    assert gib(config(backbone={"gradient_checkpointing": True}), "bf16") < gib(CONFIG, "bf16")
    params = 43_590_848 + 2048 * (512 + 128)
    more = gib(config(optimizer={"name": "adamw"}), "bf16") - gib(CONFIG, "bf16")
    assert more == pytest.approx(params * 4 / GIB, rel=1e-6)
    queue = gib(CONFIG, "bf16") - gib(config(recipe={"moco": {**CONFIG["recipe"]["moco"], "queue_size": 1}}), "bf16")
    assert queue > 65536 * 128 * 4 / GIB


@given(
    size=st.integers(2, 600),
    steps=st.integers(1, 8),
    available_gib=st.floats(1, 80),
    precision=st.sampled_from(["fp32", "bf16"]),
)
def test_the_batch_that_is_named_fits_and_is_the_same_in_all(
    size: int, steps: int, available_gib: float, precision: str
) -> None:
    available = int(available_gib * GIB)
    need = memory.of_step(config(batch={"size": size, "grad_accum_steps": steps}), TABLE, precision, available)
    if need.fits:
        smaller, more = need.fits
        assert need.is_too_much
        assert smaller >= 2
        assert smaller * more == size * steps
        again = config(batch={"size": smaller, "grad_accum_steps": more})
        assert not memory.of_step(again, TABLE, precision, available).is_too_much
        larger = [part for part in range(smaller + 1, size) if size % part == 0]
        for part in larger:
            tried = config(batch={"size": part, "grad_accum_steps": 1})
            assert memory.of_step(tried, TABLE, precision, available).is_too_much


def test_what_is_not_known_is_said_and_never_refused() -> None:
    unknown = memory.of_step(config(backbone={"layers": [1, 1]}), TABLE, "bf16", GIB)
    assert unknown.words == "not known: this backbone was not measured"
    memory.refuse_too_much(unknown, CONFIG, "a card")
    no_card = memory.of_step(CONFIG, TABLE, "bf16", None)
    assert "of an unknown size on each GPU" in no_card.words
    memory.refuse_too_much(no_card, CONFIG, "a card")
    without = {"iresnet50": {**TABLE["iresnet50"], "switched_mib_per_image": None}}
    assert memory.of_step(config(backbone={"gradient_checkpointing": True}), without, "bf16", GIB).needed_bytes is None


def test_no_smaller_batch_is_another_sentence() -> None:
    need = memory.of_step(config(batch={"size": 7}), TABLE, "fp32", GIB)
    with pytest.raises(WrongUse, match=r"backbone\.gradient_checkpointing=true, or a GPU with more memory"):
        memory.refuse_too_much(need, CONFIG, "a card")


@pytest.mark.parametrize("name", ["Tesla V100-PCIE-16GB", "Tesla T4", "Quadro RTX 6000", "NVIDIA GeForce RTX 2080 Ti",
                                  "NVIDIA TITAN V", "Tesla P100-PCIE-16GB"])  # fmt: skip
def test_older_cards_are_known_by_name(name: str) -> None:
    assert memory.resolve("auto", None, name) == "fp16"


@pytest.mark.parametrize(
    "name",
    ["NVIDIA RTX A4500", "NVIDIA RTX A5000", "NVIDIA A40", "NVIDIA H100 80GB HBM3", "NVIDIA GeForce RTX 3070",
     "NVIDIA GeForce RTX 4090", "NVIDIA L4", "NVIDIA L40S", "NVIDIA RTX 4000 Ada Generation", "NVIDIA RTX 6000 Ada "
     "Generation", "NVIDIA B200", "NVIDIA GeForce RTX 5090", "NVIDIA A100-SXM4-80GB", "NVIDIA RTX PRO 6000 Blackwell"],
)  # fmt: skip
def test_newer_cards_are_known_by_name(name: str) -> None:
    assert memory.resolve("auto", None, name) == "bf16"


def test_a_step_too_large_for_the_card_is_refused_before_money_flows(project: Project) -> None:
    """The memory of the first candidate in the catalogue decides. The plan shows it, and no machine is requested."""
    saved = {"fp32": 4000, "half": 2000}
    tiny = {"shape": {"name": "tiny"}, "image_size": 112, "params": 1000, "saved_mib_per_image": saved}
    (project.path / "conf" / "memory.json").write_text(json.dumps({"tiny": tiny}))
    target = {"provider": "runpod", "image": "me/x:1", "gpus": ["NVIDIA RTX A4500"], "root": "/workspace/x"}
    (project.path / "conf" / "deploy" / "pods.yaml").write_text(json.dumps(target))
    emulator = Emulator()
    try:
        project.env = {"RUNPOD_API_BASE_URL": emulator.url, "RUNPOD_API_KEY": KEY}
        words = ["train", "--on", "pods", "--yes", "--set", "recipe.name=supervised"]
        for more in ([], ["--dry-run"]):
            done = project.invoke(*words, *more, code=2)
            assert "GPU memory" in done.stdout
            assert "NVIDIA RTX A4500 has 20.0 GiB" in done.stderr
            assert "--set train.batch.size=4 --set train.batch.grad_accum_steps=2" in " ".join(done.stderr.split())
        fits = project.invoke(*words, "--set", "train.batch.size=4", "--dry-run")
        assert "of 20.0 GiB on each GPU" in " ".join(fits.stdout.split())
        assert emulator.counts()["POST /v2/pods"] == 0
    finally:
        emulator.close()


def test_the_shipped_figures_are_found_by_shape() -> None:
    """Every measured backbone is found, and none is confused with another."""
    project = Path(__file__).parents[3]
    found = memory.read(project)
    if not (project / "conf" / "memory.json").is_file():
        assert found == {}
        return
    for name, figures in found.items():
        backbone = {"width": 64, "embedding_dim": 512, "patch_size": 9, **figures["shape"]}
        need = memory.of_step({**CONFIG, "backbone": backbone}, found, "bf16", None)
        alone = memory.of_step({**CONFIG, "backbone": backbone}, {name: figures}, "bf16", None)
        assert need.needed_bytes == pytest.approx(alone.needed_bytes, rel=0.25)  # masks differ within one shape


def test_distillation_says_that_the_teacher_is_not_counted() -> None:
    distill = {"name": "distill", "distill": {"head_weight": 0.0}, "head": {"sample_rate": 1.0}}
    alone = memory.of_step(config(recipe=distill), TABLE, "bf16", None)
    assert alone.why == "not counting the teacher"
    assert not memory.learns_classes(config(recipe=distill))
    both = config(recipe={**distill, "distill": {"head_weight": 0.5}})
    assert memory.learns_classes(both)
    assert memory.of_step(both, TABLE, "bf16", None).why == "not counting the classes of the head and the teacher"
    extent = memory.Extent(classes=90_000, ranks=1)
    counted = memory.of_step(both, TABLE, "bf16", None, extent)
    margin = memory.of_step(config(recipe={**distill, "name": "supervised"}), TABLE, "bf16", None, extent)
    assert counted.needed_bytes == margin.needed_bytes
    assert counted.why == "not counting the teacher"
