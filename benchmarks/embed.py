"""Images a second that mining and evaluation embed: BN folded into convolutions against the unchanged network."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from app.config import load
from app.models import build_backbone
from app.models.embedder import Embedder
from benchmarks._claims import Claim, core_seconds, in_turn, quick, report

# The gain is BN's share of the work: small on a CPU. The claim is that folding costs nothing.
AT_LEAST = {"iresnet18": 0.97, "mobilefacenet": 1.0}
BATCH = 4  # as in evaluation on a CPU


def main() -> int:
    is_quick = quick()
    torch.set_num_threads(1)
    images = torch.randn(BATCH, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    claims = [claim(name, images, 1 if is_quick else 9) for name in AT_LEAST]
    return report("embed", claims, is_quick=is_quick)


def claim(name: str, images: Tensor, rounds: int) -> Claim:
    torch.manual_seed(0)
    network = build_backbone(load([f"backbone={name}"]).backbone).to(memory_format=torch.channels_last)
    x = images.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0  # takes real statistics from one batch
        network(x)
        network.eval()
        embedder = Embedder(network, 112)
        ours, peer, ratio = in_turn(
            lambda: BATCH / core_seconds(lambda: embedder(x)), lambda: BATCH / core_seconds(lambda: network(x)), rounds
        )
    return Claim(f"embed, {name} (peer: BN as it is)", ours, peer, "images/s of a core", ratio, AT_LEAST[name])


if __name__ == "__main__":
    raise SystemExit(main())
