"""Layers with their own gradients give torch's numbers: against references, on repetition, and inside networks."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from app.config import BackboneConfig
from app.models import build_backbone, layers
from app.models.layers import Conv1x1, Conv3x3, PReLU, onednn_is_fast

LAST = torch.channels_last
SMALL = partial(BackboneConfig, embedding_dim=16, image_size=32)
CONFIGS = {
    "iresnet18": partial(SMALL, "iresnet", [2, 2, 2, 2]),
    "mobilefacenet": partial(SMALL, "mobilefacenet", [1, 4, 6, 2]),
}


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp(min=1e-12))


def own_gradient(y: Tensor) -> bool:
    assert y.grad_fn is not None
    return type(y.grad_fn).__name__ in {"_Conv3x3Backward", "_PReLUBackward"}


sizes = {"batch": st.integers(1, 5), "c": st.integers(1, 9), "h": st.integers(1, 12), "w": st.integers(1, 12)}


@given(**sizes, c_out=st.integers(1, 7), stride=st.sampled_from([1, 2]), chunk=st.sampled_from([1, 3_000, 10**7]))
@settings(max_examples=60)
def test_a_convolution_has_the_gradients_of_torch_in_64_bits(
    batch: int, c: int, h: int, w: int, c_out: int, stride: int, chunk: int
) -> None:
    """For any size, and for chunks of one row, of a few rows and of several images."""
    torch.manual_seed(0)
    layer = Conv3x3(c, c_out, stride).double()
    x = torch.randn(batch, c, h, w, dtype=torch.float64).to(memory_format=LAST).requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "CHUNK_BYTES", chunk)
        y = layer(x)
        assert own_gradient(y)
        grad = torch.randn_like(y)
        found = torch.autograd.grad(y, (x, layer.weight), grad)
    expected = torch.autograd.grad(F.conv2d(x, layer.weight, None, stride, 1), (x, layer.weight), grad)
    for a, b in zip(found, expected, strict=True):
        assert relative_error(a, b) < 1e-12


@pytest.mark.parametrize(("c", "c_out", "side"), [(8, 8, 112), (8, 16, 56), (4, 8, 32), (15, 16, 57), (16, 32, 28)])
def test_a_strided_1x1_convolution_has_the_gradients_of_torch_in_64_bits(c: int, c_out: int, side: int) -> None:
    """With few channels oneDNN's gradients crash, hang or are wrong, depending on the CPU and the number of threads."""
    torch.manual_seed(0)
    layer = Conv1x1(c, c_out, 2).to(memory_format=LAST)
    x = torch.randn(32, c, side, side).to(memory_format=LAST).requires_grad_()
    y = layer(x)
    grad = torch.randn_like(y)
    found = torch.autograd.grad(y, (x, layer.weight), grad)
    x64, weight64 = x.detach().double().requires_grad_(), layer.weight.detach().double().requires_grad_()
    y64 = F.conv2d(x64, weight64, None, 2)
    assert y.shape == y64.shape
    for a, b in zip((y, *found), (y64, *torch.autograd.grad(y64, (x64, weight64), grad.double())), strict=True):
        assert relative_error(a.detach().double(), b.detach()) < 1e-5
    with torch.no_grad():
        assert torch.allclose(layer(x), y, atol=1e-5)


@given(**sizes, chunk=st.sampled_from([1, 300, 10**7]))
@settings(max_examples=60)
def test_prelu_has_the_gradients_of_torch_in_64_bits(batch: int, c: int, h: int, w: int, chunk: int) -> None:
    """For slopes of any sign and inputs of exactly zero."""
    torch.manual_seed(0)
    layer = PReLU(c).double()
    nn.init.normal_(layer.weight)
    x = torch.randn(batch, c, h, w, dtype=torch.float64).to(memory_format=LAST)
    x[0, 0] = 0.0
    x.requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "CHUNK_BYTES", chunk)
        y = layer(x)
        assert own_gradient(y)
        grad = torch.randn_like(y)
        found = torch.autograd.grad(y, (x, layer.weight), grad)
    for a, b in zip(found, torch.autograd.grad(F.prelu(x, layer.weight), (x, layer.weight), grad), strict=True):
        assert relative_error(a, b) < 1e-12


@pytest.mark.parametrize("layer", [Conv3x3(3, 4), Conv3x3(3, 4, 2), PReLU(3)])
def test_gradients_are_those_of_finite_differences(layer: nn.Module) -> None:
    torch.manual_seed(0)
    layer = copy.deepcopy(layer).double()
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64).to(memory_format=LAST).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, _: layer(x), (x, layer.weight))


@pytest.mark.parametrize(("name", "width"), [("iresnet18", 16), ("mobilefacenet", 64)])
def test_a_network_trains_in_32_bits_as_exactly_as_the_default_layout(name: str, width: int) -> None:
    """Relative to 64 bits, the error of all gradients together is below twice that of torch's own, or below 1e-5."""
    torch.manual_seed(0)
    network = build_backbone(CONFIGS[name](width=width))
    x = torch.randn(8, 3, 32, 32)

    def gradient(network: nn.Module, x: Tensor) -> Tensor:
        (network(x) * torch.linspace(-1, 1, 16)).sum().backward()
        return torch.cat([p.grad.double().flatten() for p in network.parameters() if p.grad is not None])

    exact = gradient(copy.deepcopy(network).double(), x.double())
    plain = relative_error(gradient(copy.deepcopy(network), x), exact)
    fast = relative_error(gradient(network.to(memory_format=LAST), x.to(memory_format=LAST)), exact)
    assert fast < max(2 * plain, 1e-5)


@pytest.mark.parametrize("width", [8, 16])
def test_the_same_seed_gives_the_same_bytes(width: int) -> None:
    def trained() -> list[bytes]:
        torch.manual_seed(3)
        network = build_backbone(CONFIGS["iresnet18"](width=width)).to(memory_format=LAST)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            network(torch.randn(5, 3, 32, 32)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return [tensor.numpy().tobytes() for tensor in network.state_dict().values()]

    assert trained() == trained()


def test_in_the_default_layout_the_layers_are_those_of_torch() -> None:
    x = torch.randn(2, 3, 8, 8)
    for ours, theirs in ((Conv3x3(3, 4), nn.Conv2d(3, 4, 3, 1, 1, bias=False)), (PReLU(3), nn.PReLU(3))):
        theirs.load_state_dict(ours.state_dict())
        y = ours(x)
        assert not own_gradient(y)
        y.sum().backward()
        theirs(x).sum().backward()
        assert torch.equal(ours.weight.grad, theirs.weight.grad)


@pytest.mark.parametrize("layer", [Conv3x3(3, 3), PReLU(3)])
def test_where_no_gradient_of_ours_pays_the_layer_is_that_of_torch(layer: nn.Module) -> None:
    """torch's gradients are used in evaluation, with a frozen weight, in autocast and in 16 bits."""
    layer = copy.deepcopy(layer).to(memory_format=LAST)
    x = torch.randn(2, 3, 8, 8).to(memory_format=LAST).requires_grad_()
    assert own_gradient(layer(x))
    with torch.no_grad():
        assert layer(x).grad_fn is None
    with torch.autocast("cpu", torch.bfloat16):
        assert not own_gradient(layer(x))
    assert not own_gradient(copy.deepcopy(layer).requires_grad_(False)(x))
    assert not own_gradient(copy.deepcopy(layer).bfloat16()(x.bfloat16()))


@pytest.mark.parametrize(
    ("dtype", "channels", "capability", "fast"),
    [
        (torch.float32, 64, "AVX512", True),
        (torch.float32, 16, "AVX512", True),
        (torch.float32, 3, "AVX512", False),  # fewer channels than a vector
        (torch.float64, 64, "AVX512", False),  # oneDNN computes in 32 bits and below
        (torch.float32, 64, "AVX2", False),
        (torch.float32, 64, "DEFAULT", False),
        (torch.float32, 64, "NO AVX", False),
    ],
)
def test_onednn_computes_weight_gradients_where_it_is_fast(
    dtype: torch.dtype, channels: int, capability: str, fast: bool
) -> None:
    assert onednn_is_fast(dtype, channels, capability) is fast


@pytest.mark.parametrize("capability", ["AVX512", "AVX2"])
def test_a_convolution_has_the_same_gradients_on_any_cpu(capability: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to rounding, whichever of the two computes them: in 32 bits, against 64 bits."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    torch.manual_seed(0)
    for stride in (1, 2):
        layer = Conv3x3(16, 24, stride).to(memory_format=LAST)
        x = torch.randn(3, 16, 15, 13).to(memory_format=LAST).requires_grad_()
        y = layer(x)
        assert own_gradient(y) == (capability == "AVX2")
        grad = torch.randn_like(y)
        found = torch.autograd.grad(y, (x, layer.weight), grad)
        x64, weight64 = x.detach().double().requires_grad_(), layer.weight.detach().double().requires_grad_()
        y64 = F.conv2d(x64, weight64, None, stride, 1)
        for a, b in zip(found, torch.autograd.grad(y64, (x64, weight64), grad.double()), strict=True):
            assert relative_error(a.double(), b) < 1e-6


def test_gradients_of_gradients_are_refused() -> None:
    layer = PReLU(3)
    x = torch.randn(2, 3, 4, 4).to(memory_format=LAST).requires_grad_()
    (grad,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("width", [8, 16])
def test_weight_gradients_have_the_layout_of_their_weight(width: int) -> None:
    """With another layout the optimizer and DDP would copy each gradient at every step."""
    network = build_backbone(CONFIGS["iresnet18"](width=width)).to(memory_format=LAST)
    network(torch.randn(2, 3, 32, 32)).sum().backward()
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.stride() == parameter.stride(), name


@pytest.mark.parametrize(("name", "width"), [("iresnet18", 8), ("mobilefacenet", 64)])
def test_autocast_trains_in_16_bits_and_ends_in_32(name: str, width: int) -> None:
    network = build_backbone(CONFIGS[name](width=width)).to(memory_format=LAST)
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = network(torch.randn(2, 3, 32, 32))
    assert embeddings.dtype == torch.float32
    embeddings.sum().backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)
