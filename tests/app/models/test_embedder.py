"""The embedder of mining and evaluation: the network's embeddings, with BN folded into its convolutions."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from app.config import load
from app.models import build_backbone
from app.models.embedder import FOLD_TOLERANCE, Embedder, folded

DEEP = [pytest.param(name, marks=pytest.mark.slow) for name in ("iresnet34", "iresnet50", "iresnet100", "iresnet200")]


@pytest.mark.parametrize("name", ["iresnet18", "mobilefacenet", "vit_t", *DEEP])
def test_the_embedder_says_what_the_network_says(name: str) -> None:
    """BN has real statistics, as after some training; embeddings agree within the stated tolerance."""
    torch.manual_seed(1)
    network = build_backbone(load([f"backbone={name}", "backbone.image_size=32"]).backbone)
    images = torch.rand(8, 3, 32, 32) * 2 - 1
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0  # one batch is enough
    with torch.no_grad():
        network(images)
    embedder = Embedder(network, 32, flip=True)
    assert network.training
    left = [m for m in embedder.network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(left) <= len(norms) / 2
    with torch.no_grad():
        network.eval()
        views = [network(x).double() for x in (images, images.flip(3))]
        embeddings, lengths = embedder(images)
    plain, quick = (nn.functional.normalize(z, dim=1) for z in (views[0] + views[1], embeddings.double()))
    assert (plain - quick).abs().max() <= 2 * FOLD_TOLERANCE  # FOLD_TOLERANCE holds on a probe of other images
    assert torch.allclose(lengths.double(), (views[0].norm(dim=1) + views[1].norm(dim=1)) / 2, rtol=1e-5)


def test_its_precision_is_that_of_the_network_alone() -> None:
    """Autocast applies to the network inside the embedder alone; embeddings are fp32."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    x = torch.randn(5, 3, 2, 2)
    half = Embedder(network, 2, precision=torch.bfloat16)(x)[0]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(half, network(x).float())
    assert half.dtype == torch.float32
    assert not torch.equal(half, network(x))


def test_folding_is_checked_in_full_precision_and_leaves_settings_as_they_were() -> None:
    """Training on a GPU allows TF32; with its rounding every folded network would exceed the tolerance."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
    seen: list[tuple[str, bool, bool]] = []

    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = network

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            precision, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
            seen.append((precision, convolutions, torch.is_autocast_enabled("cpu")))
            return self.inside(x)

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    try:
        with torch.autocast("cpu", torch.bfloat16):
            quick = folded(Watching(), 8)
        assert seen == [("highest", False, False)] * 2
        assert isinstance(quick.inside[1], nn.Identity)
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("high", True)
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def test_a_network_whose_parts_mislead_is_left_as_it_is() -> None:
    class Misleading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(self.bn(x) + x).mean((2, 3))

    torch.manual_seed(0)
    network = Misleading().eval()
    network.bn.running_mean.normal_()
    assert isinstance(folded(network, 8).bn, nn.BatchNorm2d)
    network.bn = nn.BatchNorm2d(4).eval()
    network.forward = lambda x: network.conv(x).mean((2, 3))  # type: ignore[method-assign]
    assert isinstance(folded(network, 8), Misleading)


@pytest.mark.parametrize(
    ("name", "layers"), [("iresnet_narrow", [1, 1, 1, 1]), ("mobilefacenet", [1, 1, 1, 1]), ("vit_t", [2])]
)
def test_copies_of_a_network_are_compiled_once_and_smaller_batches_are_filled_up(
    name: str, layers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mining copies the network anew at each refresh. Neither a copy nor the last batch may cost another minute."""
    from torch._dynamo.testing import CompileCounter  # takes seconds, also where other tests are selected

    torch.manual_seed(1)
    words = [f"backbone={name}", f"backbone.layers={layers}", "backbone.image_size=32"]
    network = build_backbone(load(words).backbone)
    images = (torch.rand(6, 3, 32, 32) * 2 - 1).contiguous(memory_format=torch.channels_last)
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    torch._dynamo.reset()
    for refresh in range(3):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(1.01)
            embedder = Embedder(network, 32, precision=torch.bfloat16, flip=refresh == 2, compiled=True)
            plain = Embedder(network, 32, precision=torch.bfloat16, flip=refresh == 2)
            for batch in (images[:4], images[4:], images[:4]):
                found, wanted = embedder(batch), plain(batch)
                assert found[0].shape == wanted[0].shape
                apart = nn.functional.cosine_similarity(found[0], wanted[0])
                assert apart.min() > 0.999
                assert torch.allclose(found[1], wanted[1], rtol=0.02)
    assert counter.frame_count == 1
