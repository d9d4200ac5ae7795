"""Images a second in a training step of IResNet18 on this CPU: forward, backward, clipping and optimizer, in 32 bits.

Ours is the network, memory layout and optimizer of app.train's defaults. The peer is the network as arcface_torch
builds it, of torch's own layers in torch's default memory layout, with torch's SGD. Names of weights agree, so both
start from the same weights. Both run in one process on one core, in turn, and the time is that of the core: other load
on the machine affects both alike.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from _claims import Claim, core_seconds, in_turn, quick, report
from _peer import Peer

from app.config import load
from app.models import build_backbone
from app.runtime.optimizer import build_optimizer

SIZE = 112
CLIP = 5.0  # the norm of gradients, as published


def stepper(network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor) -> Callable[[], None]:
    def step() -> None:
        network(images).square().mean().backward()
        nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> int:
    is_quick = quick()
    rounds = 2 if is_quick else 9
    torch.set_num_threads(1)
    claims = [claim(batch, rounds) for batch in ((4,) if is_quick else (8, 16))]
    return report("train_step", claims, is_quick=is_quick)


def claim(batch: int, rounds: int) -> Claim:
    torch.manual_seed(0)
    config = load(["backbone=iresnet18"])
    layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
    images = torch.randn(batch, 3, SIZE, SIZE)
    network = build_backbone(config.backbone).train()
    plain = Peer().train()
    plain.load_state_dict(network.state_dict())
    network = network.to(memory_format=layout)
    o = config.train.optimizer
    rates = {"lr": 1e-3, "momentum": o.momentum, "nesterov": o.nesterov, "weight_decay": o.weight_decay}
    theirs = torch.optim.SGD(plain.parameters(), **rates)
    mine = build_optimizer(o, [{"params": list(network.parameters()), "lr": 1e-3}])
    ours, peer = stepper(network, mine, images.to(memory_format=layout)), stepper(plain, theirs, images)
    fast, slow, ratio = in_turn(lambda: batch / core_seconds(ours), lambda: batch / core_seconds(peer), rounds)
    return Claim(f"training step of IResNet18, batch {batch}, one core", fast, slow, "images/s", ratio, 1.1)


if __name__ == "__main__":
    raise SystemExit(main())
