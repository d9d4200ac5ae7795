"""conf/memory.json has the memory that a training step saves for its backward pass, measured for every backbone."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch

from app.config import load
from app.models import build_backbone, layers
from benchmarks import memory


def table() -> dict[str, Any]:
    return json.loads(memory.TABLE.read_text(encoding="utf-8"))


def test_the_table_has_every_backbone_and_no_other() -> None:
    assert sorted(table()) == memory.BACKBONES


@pytest.mark.parametrize("backbone", ["iresnet_narrow", "vit_t"])
def test_the_table_says_what_is_measured(backbone: str) -> None:
    assert memory.measure(backbone) == table()[backbone]


def test_tensors_without_memory_save_as_much_as_real_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table comes from shapes alone. Here a real network saves real tensors, in both precisions."""
    monkeypatch.setattr(layers, "_pays", lambda *_: False)
    config = dataclasses.replace(load(["backbone=iresnet_narrow"]).backbone, image_size=memory.IMAGE_SIZE)
    network = build_backbone(config).train().to(memory_format=torch.channels_last)
    for half, name in ((False, "fp32"), (True, "half")):
        per_image, _ = memory.saved(network, half=half)
        assert per_image / memory.MIB == pytest.approx(table()["iresnet_narrow"]["saved_mib_per_image"][name], abs=0.01)


def test_the_table_agrees_with_a_count_of_iresnet50_by_hand() -> None:
    """In fp32 every convolution, BN and PReLU keeps its input. An input that two of them share counts once."""
    numbers = 3 * 112**2 + 2 * 64 * 112**2  # the image, and the inputs of the stem's BN and PReLU
    channels_in, side = 64, 112
    for blocks, channels in ((3, 64), (4, 128), (14, 256), (3, 512)):
        for _ in range(blocks):
            halves = channels != channels_in or side == 112
            side_out = side // 2 if halves else side
            numbers += (2 * channels_in + 3 * channels) * side**2 + channels * side_out**2
            numbers += channels * side_out**2 if halves else 0  # the shortcut's BN; its convolution shares bn1's input
            channels_in, side = channels, side_out
    numbers += 2 * 512 * 7**2 + 512  # the tail: BN, linear, BN
    assert table()["iresnet50"]["saved_mib_per_image"]["fp32"] == round(4 * numbers / memory.MIB, 2)
