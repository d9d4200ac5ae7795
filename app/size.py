"""Tell the size of a network: python -m app.size backbone=r50 [key=value …]

Prints its parameters, the multiply-accumulate operations of one image (GMAC; many tables call them GFLOPs) and the
numbers of an embedding. The network has random weights and runs once, on the CPU.
"""

from __future__ import annotations

import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from app.config import BackboneConfig, load
from app.models import build_backbone
from app.runtime.command import answer


def main(argv: list[str]) -> int:
    def work() -> tuple[str, int]:
        config = load(argv).backbone
        parameters, macs = size_of(config)
        dim = config.embedding_dim
        return f"{parameters:,} parameters, {macs / 1e9:.3f} GMAC an image, embeddings of {dim} numbers", 0

    return answer(argv, __doc__ or "", work)


def size_of(config: BackboneConfig) -> tuple[int, int]:
    """Return the number of parameters, and of multiply-accumulate operations for one image."""
    network = build_backbone(config).eval()
    image = torch.zeros(1, 3, config.image_size, config.image_size)
    # As plain products: the counter does not know the fused attention of CPUs.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.inference_mode():
        network(image)
    return sum(p.numel() for p in network.parameters()), counter.get_total_flops() // 2


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
