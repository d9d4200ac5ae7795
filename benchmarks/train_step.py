"""Images a second in a training step of IResNet18 on this CPU: forward, backward, clipping and optimizer, in 32 bits.

Ours is the network, memory layout and optimizer of app.train's defaults. The peer is the network as arcface_torch
builds it, of torch's own layers in torch's default memory layout, with torch's SGD. A better peer has the same memory
layout as ours. Names of weights agree, so all start from the same weights. They run in one process on one core, in
turn, and the time is that of the core: other load on the machine affects all alike.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from app.config import load
from app.models import build_backbone
from app.runtime.optimizer import build_optimizer
from benchmarks._claims import Claim, core_seconds, in_turn, quick, report
from benchmarks._peer import Peer

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
    layouts = {"": torch.contiguous_format, ", a better peer": torch.channels_last}
    batches = (4,) if is_quick else (8, 16)
    claims = [claim(batch, rounds, peer, layout) for peer, layout in layouts.items() for batch in batches]
    return report("train_step", claims, is_quick=is_quick)


def claim(batch: int, rounds: int, which: str, of_peer: torch.memory_format) -> Claim:
    torch.manual_seed(0)
    config = load(["backbone=iresnet18"])
    layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
    images = torch.randn(batch, 3, SIZE, SIZE)
    network = build_backbone(config.backbone).train()
    plain = Peer().train()
    plain.load_state_dict(network.state_dict())
    network, plain = network.to(memory_format=layout), plain.to(memory_format=of_peer)
    o = config.train.optimizer
    rates = {"lr": 1e-3, "momentum": o.momentum, "nesterov": o.nesterov, "weight_decay": o.weight_decay}
    theirs = torch.optim.SGD(plain.parameters(), **rates)
    mine = build_optimizer(o, [{"params": list(network.parameters()), "lr": 1e-3}])
    ours = stepper(network, mine, images.to(memory_format=layout))
    peer = stepper(plain, theirs, images.to(memory_format=of_peer))
    fast, slow, ratio = in_turn(lambda: batch / core_seconds(ours), lambda: batch / core_seconds(peer), rounds)
    at_least = 1.1 if of_peer is torch.contiguous_format else 1.05
    return Claim(f"training step of IResNet18, batch {batch}{which}, one core", fast, slow, "images/s", ratio, at_least)


if __name__ == "__main__":
    raise SystemExit(main())
