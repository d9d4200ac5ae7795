"""Values that are not finite are neither saved nor loaded, and the error is one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from app import evaluate, export, mine, train
from app.config import load
from app.data.dataset import open_configured
from app.evaluation.evaluator import Meter
from app.mining.pseudo_ids import find_pseudo_ids
from app.models.collapse import spread
from app.models.moco import FeatureBank
from app.recipes import RECIPES, SelfSupervised
from app.runtime import checkpoint, weights
from app.runtime.dist import World
from app.runtime.finite import NotFinite, first_fault, is_finite, listed
from tests.app.support.training import TINY, events, run


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_value_among_many_is_found(dtype: torch.dtype, value: float) -> None:
    tensor = torch.randn(3, 50, 40).to(dtype)
    assert is_finite(tensor)
    tensor[2, 49, 39] = value
    assert not is_finite(tensor)
    assert not is_finite(tensor.transpose(0, 2))
    assert first_fault({"a": {"b": [torch.ones(2), {"c": tensor}]}}) == "a.b.1.c"
    assert first_fault({"a": {"b": [torch.ones(2), {"c": tensor}]}}, {"a.b.1.c"}) is None


def test_what_is_no_number_is_no_fault() -> None:
    assert first_fault({"n": None, "s": "nan", "i": torch.zeros(0), "l": torch.arange(3), "t": (1.0, True)}) is None
    assert first_fault({"scale": float("inf")}) == "scale"


def test_a_module_says_where_nan_has_a_meaning() -> None:
    modules = torch.nn.ModuleDict({"bank": FeatureBank(4, 2), "other": torch.nn.Linear(2, 2)})
    assert listed(modules, "may_hold_nan") == {"bank.features"}
    assert first_fault(dict(modules.state_dict()), listed(modules, "may_hold_nan")) is None
    assert first_fault(dict(modules.state_dict())) == "bank.features"


def poison_first(tensor: torch.Tensor) -> None:
    tensor[(0,) * tensor.ndim] = torch.nan


class Poisoned(SelfSupervised):
    """The recipe, but one tensor turns NaN after the last step of the second epoch."""

    poison: Callable[[SelfSupervised], torch.Tensor]
    steps = 0

    def after_step(self, lr: float, grad_scale: float, *, taken: bool) -> None:
        super().after_step(lr, grad_scale, taken=taken)
        self.steps += 1
        if self.steps == 8:
            with torch.no_grad():
                poison_first(type(self).poison(self))


@pytest.mark.parametrize(
    ("poison", "told"),
    [
        (lambda r: r.encoder.backbone.conv1.weight, "modules.encoder.backbone.conv1.weight holds values"),
        (lambda r: r.momentum.encoder.backbone.conv1.weight, "held-out images are not finite"),
        (lambda r: r.queue.keys, "embeddings are not finite"),
    ],
    ids=["weights", "momentum encoder", "queue"],
)
def test_a_run_that_turns_nan_ends_in_a_sentence_and_leaves_the_checkpoint_before(
    poison: Callable, told: str, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPES, "self_supervised", Poisoned)
    monkeypatch.setattr(Poisoned, "poison", staticmethod(poison), raising=False)
    words = [*TINY, f"data.binary_cache_path={small_data}", f"run.dir={tmp_path / 'run'}"]
    assert train.main([*words, "train.eval.every_epochs=1"]) == 1
    end = events(tmp_path / "run")[-1]
    assert (end["event"], end["reason"]) == ("end", "failed")
    assert told in end["message"]
    assert "continue with a lower train.optimizer.lr than" in end["message"]
    assert end["message"].endswith("; the last good checkpoint is epoch_000.pt")
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "epoch_000.json", "epoch_000.pt", "latest",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    run(small_data, folder, World(0, 1, torch.device("cpu")), "train.epochs=2")
    return folder


def poisoned(trained: Path, into: Path, change: Callable[[dict], torch.Tensor]) -> Path:
    """A copy of a run whose last checkpoint holds NaN, as a version before this check may have written it."""
    shutil.copytree(trained, into)
    path = into / "checkpoints" / "epoch_001.pt"
    content = torch.load(path, weights_only=True)
    poison_first(change(content))
    torch.save(content, path)
    note = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**note, "sha256": checkpoint.sha256(path)}))
    return path


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda c: c["modules"]["encoder.backbone.conv1.weight"], "modules.encoder.backbone.conv1.weight"),
        (lambda c: c["modules"]["queue.keys"], "modules.queue.keys"),
        (lambda c: c["optimizer"]["state"][0]["momentum_buffer"], "optimizer.state.0.momentum_buffer"),
    ],
    ids=["weights", "queue", "optimizer"],
)
def test_a_checkpoint_that_is_not_finite_is_not_resumed(
    change: Callable, name: str, trained: Path, small_data: Path, tmp_path: Path
) -> None:
    path = poisoned(trained, tmp_path / "run", change)
    words = [*TINY, f"data.binary_cache_path={small_data}", f"run.dir={tmp_path / 'run'}"]
    older = path.with_name("epoch_000.pt")
    for wish in ("auto", str(path)):
        assert train.main([*words, f"train.resume={wish}"]) == 2
        message = events(tmp_path / "run")[-1]["message"]
        assert f"holds values that are not finite in {name}; give train.resume={older}" in message
    assert train.main([*words, f"train.resume={older}"]) == 0


def test_weights_that_are_not_finite_begin_and_measure_nothing(
    trained: Path, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = poisoned(trained, tmp_path / "run", lambda c: c["modules"]["momentum.encoder.backbone.bn1.weight"])
    told = "epoch_001.pt holds values that are not finite in bn1.weight"
    words = [*TINY, f"data.binary_cache_path={small_data}", f"run.dir={tmp_path / 'warm'}"]
    assert train.main([*words, f"train.warm_start={path}"]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "warm").exists()
    assert evaluate.main([f"weights={path}", f"out={tmp_path / 'out'}"]) == 1
    assert told in capsys.readouterr().out
    assert export.main([f"checkpoint={path}", f"out={tmp_path / 'model.onnx'}"]) == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / "model.onnx").exists()
    assert mine.main([f"checkpoint={path}", f"out={tmp_path / 'mined'}"]) == 1
    assert told in capsys.readouterr().err


def test_class_centres_that_are_not_finite_begin_nothing(tmp_path: Path, alone: World) -> None:
    table = torch.full((3, 4), torch.nan)
    torch.save({"tables": {"weight": table, "labels": torch.arange(3)}}, tmp_path / "centres.pt")
    with pytest.raises(Exception, match="not finite in its class centres"):
        weights.load_centres(tmp_path / "centres.pt", alone)


def test_diagnostics_say_so_instead_of_failing() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(50, 8), dim=1)
    vectors[7] = torch.nan
    with pytest.raises(NotFinite, match="1 of 50 embeddings are not finite"):
        spread(vectors)


def test_an_untrained_network_that_overflows_is_no_reason_to_end(small_data: Path, alone: World) -> None:
    """Deep networks overflow until their running averages come from real images."""
    config = load([*TINY, f"data.binary_cache_path={small_data}"])
    data = open_configured(config.data)
    recipe = SelfSupervised(config, data, alone)
    with torch.no_grad():
        recipe.embedder.conv1.weight.fill_(torch.inf)
    meter = Meter(config, data, recipe.embedder, alone, lambda: False)
    assert [what for what, _ in meter.baselines()] == ["pixels"]
    with pytest.raises(NotFinite, match="16 of 16 held-out images"):
        meter.measure()


@pytest.mark.parametrize("method", ["overlap", "parity"])
@pytest.mark.parametrize("broken", [1, 40])
def test_mining_takes_images_without_an_embedding_for_nobody(method: str, broken: int, alone: World) -> None:
    vectors = torch.nn.functional.normalize(torch.randn(40, 8), dim=1)
    vectors[:broken] = torch.nan
    config = load([f"mining.method={method}", "mining.neighbours=4"]).mining
    found, report = find_pseudo_ids(vectors, np.full(40, -1, np.int64), None, config, alone, seed=0)
    assert report.as_dict()["unusable"] == broken
    assert (found[:broken] == -1).all()
