"""Margin heads in 32 bits against their formulas in 64: the greatest relative error of logits and of gradients.

Cosines range from -0.9999 to 0.9999 and norms from 1 to 150. The peer is the allowed error.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from app.config.schema import HeadConfig
from app.models.heads import HEADS, build_head
from benchmarks._claims import Claim, quick, report
from tests.app.models.test_heads import error, logits_of, published

ALLOWED = 1e-5


def worst(config: HeadConfig, images: int, classes: int, seed: int) -> float:
    """Return the largest error of logits and gradients; values below 1, of up to 64, are judged as if they were 1."""
    generator = torch.Generator().manual_seed(seed)
    cosine = (torch.rand(images, classes, generator=generator) * 2 - 1) * 0.9999
    labels = torch.randint(0, classes, (images,), generator=generator)
    norms = 1 + 149 * torch.rand(images, generator=generator)
    weights = torch.randn(images, classes, generator=generator)

    def both(kind: torch.dtype) -> tuple[Tensor, Tensor]:
        leaf = cosine.to(kind, copy=True).requires_grad_()
        if kind == torch.float64:
            logits = published(config.name, leaf, labels, norms.to(kind), config)
        else:
            logits = logits_of(build_head(config), leaf, labels, norms)
        (logits * weights.to(kind)).sum().backward()
        assert leaf.grad is not None
        return logits, leaf.grad

    pairs = zip(both(torch.float32), both(torch.float64), strict=True)
    return max(error(ours, right, 1.0) for ours, right in pairs)


def main() -> int:
    is_quick = quick()
    rounds = 1 if is_quick else 5
    claims = []
    for name in HEADS:
        configs = [HeadConfig(name, straight_through=through) for through in (True, False)]
        if name == "combined":
            configs += [HeadConfig(name, margins=[0.9, 0.4, 0.15], straight_through=False)]
        found = max(worst(config, 256, 1000, seed) for config in configs for seed in range(rounds))
        millionths = (found * 1e6, ALLOWED * 1e6)
        claims.append(Claim(f"{name}: error of logits, gradients", *millionths, "1e-6", ALLOWED / found, 1.0))
    return report("heads", claims, is_quick=is_quick)


if __name__ == "__main__":
    raise SystemExit(main())
