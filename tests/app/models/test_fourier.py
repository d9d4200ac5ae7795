"""The Fourier layer equals its published formula, and so do the matrices that replace it in an export."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from app.config import BackboneConfig
from app.models import build_backbone
from app.models.fourier import FourierLayer, fourier_layer
from app.runtime.published import GAIN, translate

SIZES = [112, 16, 9, 2]


def published_mask(size: int, mask: str) -> Tensor:
    """The published mask [S, S], bin by bin, with frequency 0 in the middle."""
    rows = []
    for i in range(size):
        rows.append([])
        for j in range(size):
            down, across = abs(i - size // 2), abs(j - size // 2)
            distance = ((down / (size / 2)) ** 2 + (across / (size / 2)) ** 2) ** 0.5
            middle = down**2 + across**2 <= 1
            if mask == "vit":
                rows[-1].append(0.8 if middle else max(1.0, distance / 0.8))
            else:
                rows[-1].append(1.0 if middle else max(1.0, distance))
    return torch.tensor(rows, dtype=torch.float64)


def filtered(x: Tensor, gain: Tensor, mask: str) -> Tensor:
    """The published formula: FFT, shift, mask, gain, unshift, inverse FFT, real part."""
    spectrum = torch.fft.fftshift(torch.fft.fft2(x), (-2, -1)) * published_mask(x.shape[-1], mask) * gain
    return torch.fft.ifft2(torch.fft.ifftshift(spectrum, (-2, -1))).real


def random_layer(size: int, mask: str = "vit") -> FourierLayer:
    layer = FourierLayer(size, mask).double()
    torch.nn.init.normal_(layer.learnable_param, generator=torch.Generator().manual_seed(size))
    return layer


def images(count: int, size: int) -> Tensor:
    return torch.randn(count, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("mask", ["vit", "iresnet"])
@pytest.mark.parametrize("size", SIZES)
def test_the_layer_is_the_published_formula_forward_and_backward(size: int, mask: str) -> None:
    layer = random_layer(size, mask)
    x = images(2, size).requires_grad_()
    again, gain = x.detach().clone().requires_grad_(), layer.learnable_param.detach().clone().requires_grad_()
    upstream = images(2, size).flip(0)
    got, expected = layer(x), filtered(again, gain, mask)
    got.backward(upstream)
    expected.backward(upstream)
    assert torch.allclose(got, expected, atol=1e-12)
    assert torch.allclose(x.grad, again.grad, atol=1e-12)
    assert torch.allclose(layer.learnable_param.grad, gain.grad, atol=1e-12)


@pytest.mark.parametrize("mask", ["vit", "iresnet"])
@pytest.mark.parametrize("size", SIZES)
def test_the_mask_is_the_published_one(size: int, mask: str) -> None:
    published = torch.fft.ifftshift(published_mask(size, mask))[:, : size // 2 + 1]
    assert torch.allclose(FourierLayer(size, mask).mask().double(), published, atol=1e-6)


def test_weights_of_the_fork_give_what_its_rolled_colours_gave() -> None:
    """The fork's shift also rolls images and colours, so its gain applies to other colours; `translate` reorders it."""
    x, gain = images(5, 16), random_layer(16).learnable_param.detach()
    spectrum = torch.fft.fftshift(torch.fft.fft2(x)) * published_mask(16, "vit") * gain
    expected = torch.fft.ifft2(torch.fft.ifftshift(spectrum)).real
    network = build_backbone(BackboneConfig("iresnet", [1], width=8, image_size=16, fourier="vit")).double()
    fork = {name: tensor for name, tensor in network.state_dict().items() if not name.endswith("squares")}
    network.load_state_dict(translate(fork | {GAIN: gain}, network.state_dict()))
    assert torch.allclose(network.fourier_transform_layer(x), expected, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_matrices_are_the_same_filter_for_any_batch(size: int) -> None:
    layer = random_layer(size)
    matrices = layer.as_matrices()
    for count in (1, 3):
        x = images(count, size)
        assert torch.allclose(matrices(x), layer(x), atol=1e-11)
    as_float = layer.float()
    x = images(2, size).float()
    assert torch.allclose(as_float.as_matrices()(x), as_float(x), atol=2e-5)


class Operators(TorchDispatchMode):
    """Notes the name of every operator that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.__name__.split(".")[0])
        return func(*args, **(kwargs or {}))


def test_matrices_are_products_and_sums_alone() -> None:
    """No FFT, and no subtraction: readers of ONNX files take a subtraction near the input for the normalisation."""
    matrices, x = random_layer(16).as_matrices(), images(2, 16)
    with Operators() as seen:
        matrices(x)
    products = {"mul", "mm", "bmm"}
    layout = {"expand", "view", "_unsafe_view", "clone", "transpose"}
    assert {"mul", "add"} <= seen.names <= {"add"} | products | layout


def test_the_layer_begins_as_its_mask_and_holds_the_published_number_of_parameters() -> None:
    layer = FourierLayer(112)
    assert sum(p.numel() for p in layer.parameters()) == 37_632
    assert torch.equal(layer.gain(), layer.mask().expand(3, -1, -1))


def test_only_half_of_the_learned_numbers_have_an_effect() -> None:
    """The part of the gain that is odd about frequency 0 has no effect: it changes only the imaginary part."""
    layer, x = random_layer(9), images(1, 9)
    before = layer(x)
    odd = torch.randn(3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        layer.learnable_param += odd - odd.flip(-2, -1)
    assert torch.allclose(layer(x), before, atol=1e-12)


@pytest.mark.parametrize("module", [FourierLayer(16), FourierLayer(16).as_matrices()])
def test_autocast_does_not_reach_the_layer(module: torch.nn.Module) -> None:
    x = images(2, 16).float()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(x), module(x.float()))
        assert module(x.bfloat16()).dtype == torch.float32


def test_the_optional_layer_does_nothing_and_has_no_names() -> None:
    layer = fourier_layer("none", 112)
    assert not layer.state_dict()
    x = images(1, 8)
    assert layer(x) is x


@pytest.mark.parametrize(("name", "width"), [("iresnet", 8), ("mobilefacenet", 64), ("vit", 16)])
def test_a_network_sees_the_filtered_image(name: str, width: int) -> None:
    layers = {"iresnet": [1, 1], "mobilefacenet": [1, 1, 1, 1], "vit": [1]}[name]
    config = BackboneConfig(name, layers, width=width, embedding_dim=8, image_size=32, fourier="vit")
    torch.manual_seed(0)
    network = build_backbone(config).double().eval()
    x = images(2, 32)
    whole = network(x)
    layer, network.fourier_transform_layer = network.fourier_transform_layer, torch.nn.Identity()
    assert not torch.allclose(network(x), whole, rtol=0.01)
    assert torch.allclose(network(layer(x)), whole)
    network.fourier_transform_layer = layer.as_matrices()
    assert torch.allclose(network(x), whole)
    assert f"fourier_transform_layer.{next(iter(layer.state_dict()))}" == GAIN
