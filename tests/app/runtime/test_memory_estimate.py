"""The laptop's estimate of a step's memory agrees with the app's tensors, though neither half imports the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from app.config import Config, load
from app.models.centres import NOBODY
from app.models.moco import FeatureBank, Queue
from app.models.partial_fc import PartialFC
from app.recipes import RECIPES
from app.recipes.recipe import Recipe
from app.runtime.dist import World
from app.runtime.optimizer import build_optimizer
from deploy.specs import memory
from deploy.specs.memory import Extent

CPU = torch.device("cpu")
SUPERVISED = ["recipe=supervised", "backbone.embedding_dim=32", "train.batch.size=16"]


def bytes_of(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def layer_of(config: Config, classes: int, here: World) -> PartialFC:
    width = config.backbone.embedding_dim
    return PartialFC(classes, width, config.recipe.head, config.train.optimizer, here, seed=0)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("ranks", [1, 3])
def test_a_class_takes_the_bytes_of_its_tables(optimizer: str, ranks: int) -> None:
    config = load([*SUPERVISED, f"train.optimizer.name={optimizer}"])
    tables = layer_of(config, 999, World(0, ranks, CPU)).centres.tables
    assert bytes_of(tables.values()) == 999 // ranks * memory.centre_bytes(optimizer, 32)


@pytest.mark.parametrize("rate", [1.0, 0.1])
@pytest.mark.parametrize("ranks", [1, 4])
def test_the_head_counts_as_many_centres_as_it_compares_with(rate: float, ranks: int) -> None:
    classes = 20_000
    config = load([*SUPERVISED, f"recipe.head.sample_rate={rate}"])
    rows = layer_of(config, classes, World(0, ranks, CPU)).sample(torch.arange(16 * ranks))
    head = memory.head_of(config.as_dict(), Extent(classes=classes, ranks=ranks))
    assert head.bytes_per_image == pytest.approx(memory.HEAD_KEPT * ranks * len(rows) * 4, rel=0.02)
    assert (rows != NOBODY).any()


def peak_bytes(work: Any) -> int:
    """The peak of the memory that `work` allocates, in addition to what was allocated before."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds, profile_memory=True) as found:
        work()
    events = [each for each in found.profiler.kineto_results.events() if each.name() == "[memory]"]
    live = most = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return most


@pytest.mark.parametrize(("name", "rate"), [("arcface", 1.0), ("curricularface", 1.0), ("cosface", 0.25)])
def test_the_head_takes_no_more_than_is_estimated_and_not_much_less(name: str, rate: float) -> None:
    classes, images = 10_000, 64
    config = load(
        [*SUPERVISED, f"recipe.head.name={name}", f"recipe.head.sample_rate={rate}", f"train.batch.size={images}"]
    )
    layer = layer_of(config, classes, World(0, 1, CPU))
    embeddings, labels = torch.randn(images, 32, requires_grad=True), torch.arange(images)

    def step() -> None:
        layer(embeddings, labels)[0].backward()

    step()
    layer.step(0.1)
    tables = bytes_of(layer.centres.tables.values())
    head = memory.head_of(config.as_dict(), Extent(classes=classes, ranks=1))
    estimated = head.fixed_bytes + images * head.bytes_per_image
    taken = tables + peak_bytes(step)
    assert 0.5 * estimated < taken <= estimated


def test_what_is_remembered_of_each_image_is_counted() -> None:
    for features in ("fresh", "bank"):
        config = load(["recipe=self_supervised", f"mining.features={features}", "backbone.embedding_dim=64"])
        remembered = bytes_of([torch.zeros(500, dtype=torch.long)])  # pseudo-IDs
        remembered += bytes_of(FeatureBank(500, 64).buffers()) if features == "bank" else 0
        assert memory.tables_bytes(config.as_dict(), 500) == remembered


@pytest.mark.parametrize("words", [[], ["train.optimizer.name=adamw"], ["mining.features=bank"],
                                   ["recipe=supervised"], ["recipe=supervised", "recipe.ema=0.9"]])  # fmt: skip
def test_all_that_a_run_holds_between_steps_is_in_the_estimate(words: list[str], small_data: Any) -> None:
    """The estimate covers the real bytes of weights, averages, optimizer, momentum encoder, queue, bank and centres."""
    config = load([*words, "backbone=iresnet_narrow", f"data.binary_cache_path={small_data}"])
    alone = World(0, 1, CPU)
    recipe: Recipe = RECIPES[config.recipe.name](config, RECIPES[config.recipe.name].training_data(config), alone)
    optimizer = build_optimizer(config.train.optimizer, recipe.param_groups())
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = [t for each in optimizer.state.values() for t in each.values() if isinstance(t, torch.Tensor) and t.ndim]
    gradients = [p.grad for p in trained if p.grad is not None]
    tensors = [*recipe.modules.state_dict().values(), *gradients, *state, *recipe.tables().values()]
    held = bytes_of({tensor.data_ptr(): tensor for tensor in tensors}.values())  # some have two names
    figures = {"image_size": 112, "params": sum(p.numel() for p in recipe.embedder.parameters()),
               "gradient_checkpointing": False, "saved_mib_per_image": {"fp32": 0.001, "half": 0.001},
               "shape": {"name": "iresnet"}}  # fmt: skip
    classes = None if recipe.data.classes is None else int(recipe.data.classes.max()) + 1
    extent = Extent(rows=len(recipe.data.images), classes=classes, ranks=1)
    small = {**config.as_dict(), "train": {**config.as_dict()["train"], "batch": {"size": 2}}}
    need = memory.of_step(small, {"narrow": figures}, "fp32", None, extent)
    assert need.needed_bytes is not None
    assert need.why == ""
    rest = need.needed_bytes - memory.MARGIN_BYTES
    a_batch = 2 * (memory._bytes_per_image(small, 0.001) + memory.head_of(small, extent).bytes_per_image)
    assert held <= 1.01 * (rest - a_batch)  # counters and BN's averages are not counted
    assert rest - a_batch <= 1.2 * held + 10_000  # a gradient of the centres is counted


def test_the_queue_counts_keys_and_rows() -> None:
    config = load(["recipe=self_supervised"]).as_dict()
    sizes = []
    for size in (1024, 2048):
        config["recipe"]["moco"]["queue_size"] = size
        figures = {"params": 0}
        sizes.append(memory._fixed_bytes(config, figures, "fp32"))
    dim = config["recipe"]["moco"]["projection_dim"]
    assert sizes[1] - sizes[0] == bytes_of([Queue(1024, dim).keys, Queue(1024, dim).rows])


def test_classes_that_are_not_known_are_said() -> None:
    config = load([*SUPERVISED]).as_dict()
    assert memory.head_of(config, Extent(ranks=2)).why == "not counting the classes of the head"
    assert memory.head_of(config, Extent(classes=5)).why == "not counting the classes of the head"
    assert memory.head_of(load([]).as_dict(), Extent()) == memory.HeadMemory()
