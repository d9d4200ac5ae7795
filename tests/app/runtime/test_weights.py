"""Weights as other trainers store them: wrappings, prefixes, safetensors, and class centres of several GPUs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from app.config import BackboneConfig, load
from app.errors import WrongUse
from app.models import build_backbone
from app.recipes.supervised import Supervised
from app.runtime import safetensors
from app.runtime.dist import World
from app.runtime.published import prefixes
from app.runtime.weights import load_backbone, load_centres, read_backbone
from tests.app.support.training import TINY


def network(seed: int = 0, layers: tuple[int, ...] = (1, 1)) -> nn.Module:
    torch.manual_seed(seed)
    return build_backbone(BackboneConfig("iresnet", list(layers), width=8, embedding_dim=8, image_size=32))


def under(prefix: str, seed: int = 0) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in network(seed).state_dict().items()}


def write_safetensors(path: Path, tensors: dict[str, Tensor]) -> None:
    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    content = b""
    for name, tensor in tensors.items():
        part = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        entry = {"dtype": names[tensor.dtype], "shape": list(tensor.shape)}
        table[name] = {**entry, "data_offsets": [len(content), len(content) + len(part)]}
        content += part
    head = json.dumps(table).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + content)


HEAD = {"head.kernel": torch.zeros(8, 3), "step": torch.tensor(4)}
WRAPPED: dict[str, Any] = {
    "plain": under(""),
    "plain beside numbers": {**under(""), "epoch": 3},
    "torch.compile": under("_orig_mod."),
    "compiled in parallel": under("module._orig_mod."),
    "Lightning": {"state_dict": {**under("model."), **HEAD}, "hyper_parameters": argparse.Namespace(lr=0.1)},
    "wrapper": {**under("net.backbone."), **HEAD},
    "model_state_dict": {"model_state_dict": under("module."), "epoch": 1},
    "a copy": {**under("student."), **under("ema.")},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_a_network_is_found_wherever_it_is_in_the_file(kind: str, tmp_path: Path) -> None:
    torch.save(WRAPPED[kind], tmp_path / "weights.pt")
    found = network(seed=1)
    load_backbone(tmp_path / "weights.pt", found)
    for name, tensor in network().state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


def test_two_networks_that_fit_are_refused(tmp_path: Path) -> None:
    torch.save({**under("encoder_q."), **under("encoder_k.", seed=1)}, tmp_path / "two.pt")
    with pytest.raises(WrongUse, match=r"several networks that fit, under encoder_k\. and encoder_q\."):
        load_backbone(tmp_path / "two.pt", network())


def test_of_another_depth_the_first_tensor_that_differs_is_named_without_its_prefix(tmp_path: Path) -> None:
    torch.save(under("module.model."), tmp_path / "small.pt")
    with pytest.raises(WrongUse, match=r"layer1\.1\.bn1\.weight is missing"):
        load_backbone(tmp_path / "small.pt", network(layers=(2, 1)))


@pytest.mark.parametrize("prefix", ["", "model.", "net."])
def test_an_ir_network_of_adaface_is_named(prefix: str, tmp_path: Path) -> None:
    names = ("input_layer.0.weight", "body.0.res_layer.1.weight", "output_layer.3.weight")
    torch.save({"state_dict": {prefix + name: torch.zeros(2, 2) for name in names}}, tmp_path / "ir.ckpt")
    with pytest.raises(WrongUse, match=r"ir\.ckpt holds an IR network as AdaFace and CVLface name it"):
        load_backbone(tmp_path / "ir.ckpt", network())


def test_prefixes_are_those_under_which_most_tensors_fit() -> None:
    wanted = network().state_dict()
    assert prefixes(under(""), wanted) == [""]
    assert prefixes({**under("a."), **under("b.")}, wanted) == ["a.", "b."]
    assert prefixes({"conv1.weight": torch.zeros(2, 2), **under("a.")}, wanted) == ["a."]
    assert prefixes({"other.weight": torch.zeros(2, 2)}, wanted) == []


def test_safetensors_are_read_as_written(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 2),
        "b": torch.randn(2, 2).half(),
        "c": torch.randn(5).bfloat16(),
        "d": torch.tensor(7),
        "e": torch.zeros(0, 3),
    }
    write_safetensors(tmp_path / "some.safetensors", tensors)
    found = safetensors.read(tmp_path / "some.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    write_safetensors(tmp_path / "net.pt", under("model."))  # recognised by content, whatever its name
    back = network(seed=1)
    load_backbone(tmp_path / "net.pt", back)
    assert torch.equal(back.fc.weight, network().fc.weight)


@pytest.mark.parametrize(
    "table",
    [
        b"[]",
        b"{",
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 400]}}',
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "X32", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1e3], "data_offsets": [0, 4]}}',
        b'{"a": 3}',
    ],
)
def test_damaged_safetensors_are_one_sentence(table: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(len(table).to_bytes(8, "little") + table + bytes(8))
    with pytest.raises(WrongUse, match=r"bad\.safetensors (is a damaged safetensors file|is corrupt)"):
        read_backbone(tmp_path / "bad.safetensors")


# Class centres of arcface_torch: one file per GPU.


def gpu_files(folder: Path, centres: Tensor, ranks: int, step: int = 7) -> Path:
    each, over = divmod(len(centres), ranks)
    start = 0
    for rank in range(ranks):
        stop = start + each + (rank < over)
        content = {
            "epoch": 1,
            "global_step": step,
            "state_dict_backbone": under(""),
            "state_dict_softmax_fc": {"weight": centres[start:stop].clone()},
            "state_optimizer": {"state": {}, "param_groups": []},
        }
        torch.save(content, folder / f"checkpoint_gpu_{rank}.pt")
        start = stop
    return folder / "checkpoint_gpu_0.pt"


@pytest.mark.parametrize("ranks", [1, 3, 11])
def test_centres_of_all_gpus_are_joined_in_rank_order(ranks: int, tmp_path: Path, alone: World) -> None:
    centres = torch.randn(25, 8)
    first = gpu_files(tmp_path, centres, ranks)
    for path in (first, tmp_path / f"checkpoint_gpu_{ranks - 1}.pt"):
        found, labels = load_centres(path, alone)
        assert torch.equal(found, centres)
        assert labels.tolist() == list(range(25))


def test_files_of_another_run_or_step_or_a_missing_one_are_refused(tmp_path: Path, alone: World) -> None:
    first = gpu_files(tmp_path, torch.randn(25, 8), 3)
    second = torch.load(tmp_path / "checkpoint_gpu_1.pt", weights_only=True)
    torch.save({**second, "global_step": 8}, tmp_path / "checkpoint_gpu_1.pt")
    with pytest.raises(WrongUse, match=r"checkpoint_gpu_1\.pt is of another step"):
        load_centres(first, alone)
    (tmp_path / "checkpoint_gpu_1.pt").unlink()
    with pytest.raises(WrongUse, match=r"checkpoint_gpu_1\.pt is missing"):
        load_centres(first, alone)
    gpu_files(tmp_path, torch.randn(10, 8), 2)  # beside the third file of the first run
    with pytest.raises(WrongUse, match="not those of 3 GPUs"):
        load_centres(first, alone)


def test_a_supervised_run_begins_with_their_backbone_and_centres(
    small_data: Path, tmp_path: Path, alone: World
) -> None:
    words = ["recipe=supervised", "backbone.embedding_dim=8", "recipe.head.warm_start=true"]
    classes = len(np.unique(np.load(small_data.with_name("labels.npy"))[:32]))
    centres = torch.randn(classes + 4, 8)  # more classes than in the data; the labels in both are used
    first = gpu_files(tmp_path, centres, 2)
    config = load(
        [*TINY, *words, f"data.binary_cache_path={small_data}", f"train.warm_start={first}"]
    )  # fmt: skip
    recipe = Supervised(config, Supervised.training_data(config), alone)
    recipe.warm_start(first)
    known = torch.from_numpy(recipe.data.class_labels)
    assert torch.equal(recipe.tables()["weight"], centres[known])
    assert torch.equal(recipe.backbone.fc.weight, network().fc.weight)
