"""Networks have the published sizes, names and shapes; the memory layout does not change their numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from app.config import CONF, BackboneConfig, load
from app.models import build_backbone
from app.models.iresnet import IResNet
from app.models.mobilefacenet import MobileFaceNet

# Sums over all layers, including the 512 frozen weights of the tail.
PARAMETERS = {
    "iresnet18": 24_025_600,
    "iresnet34": 34_139_328,
    "iresnet50": 43_590_848,
    "iresnet100": 65_156_160,
    "iresnet200": 118_833_920,
    "iresnet2060": 1_122_301_120,
    "mobilefacenet": 2_059_520,
}


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_a_published_network_has_its_published_size(name: str, count: int) -> None:
    """The first line of its file says the size."""
    with torch.device("meta"):
        network = build_backbone(load([f"backbone={name}"]).backbone)
    assert sum(p.numel() for p in network.parameters()) == count
    assert f"{count:,} parameters" in (CONF / "backbone" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]


def shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


def test_networks_take_the_options_of_a_config() -> None:
    config = BackboneConfig(layers=[1, 4, 6, 2], width=64, embedding_dim=48, image_size=32, dropout=0.5)
    for network in (IResNet(config), MobileFaceNet(config)):
        assert network.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 48)
        assert [m.p for m in network.modules() if isinstance(m, nn.Dropout)] == [0.5]


def test_iresnet_has_the_names_of_published_weights() -> None:
    with torch.device("meta"):
        names = set(build_backbone(load(["backbone=iresnet50"]).backbone).state_dict())
    assert {
        "conv1.weight",
        "prelu.weight",
        "layer1.0.bn1.weight",
        "layer1.0.downsample.0.weight",
        "layer1.0.downsample.1.running_mean",
        "layer3.13.bn3.weight",
        "layer4.2.prelu.weight",
        "bn2.weight",
        "fc.bias",
        "features.bias",
    } <= names
    assert "layer1.1.downsample.0.weight" not in names


def test_mobilefacenet_has_the_names_of_published_weights() -> None:
    with torch.device("meta"):
        names = shapes(build_backbone(load(["backbone=mobilefacenet"]).backbone))
    expected = {  # one of each kind, in the published network's order of layers
        "layers.0.layers.2.weight": (128,),  # stem
        "layers.1.layers.0.weight": (128, 2, 3, 3),
        "layers.2.layers.1.layers.0.weight": (128, 1, 3, 3),  # a stage's first block
        "layers.3.layers.3.layers.2.layers.1.running_var": (128,),  # the fourth of the blocks after it
        "layers.7.layers.1.layers.0.layers.0.weight": (256, 256, 1, 1),
        "conv_sep.layers.0.weight": (512, 256, 1, 1),
        "features.layers.0.layers.0.weight": (512, 1, 7, 7),
        "features.layers.2.weight": (512, 512),
        "features.layers.3.bias": (512,),
    }
    assert {name: tuple(names[name]) for name in expected} == expected
    assert len(names) == 333


@pytest.mark.parametrize("size", [112, 64, 50])
@pytest.mark.parametrize(("name", "layers", "width"), [("iresnet", [1, 2], 8), ("mobilefacenet", [1, 1, 1, 1], 64)])
def test_any_image_size_gives_an_embedding(name: str, layers: list[int], width: int, size: int) -> None:
    network = build_backbone(BackboneConfig(name, layers, width=width, embedding_dim=24, image_size=size))
    assert network(torch.zeros(2, 3, size, size)).shape == (2, 24)


def test_the_tail_scale_of_iresnet_is_not_trained() -> None:
    network = build_backbone(BackboneConfig("iresnet", [1, 1], width=8, embedding_dim=16, image_size=32))
    assert not network.features.weight.requires_grad
    assert network.features.bias.requires_grad


def test_channels_last_gives_the_same_embeddings() -> None:
    torch.manual_seed(0)
    network = build_backbone(BackboneConfig("iresnet", [1, 1], width=8, embedding_dim=16, image_size=32)).eval()
    x = torch.randn(3, 3, 32, 32)
    plain = network(x)
    last = network.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    assert torch.allclose(plain, last, atol=1e-4)
