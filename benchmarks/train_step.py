"""Images a second in a training step of IResNet18 on this CPU: forward, backward and optimizer, batches of 16.

Images are 112x112 in 32 bits. Ours uses app.train's defaults (channels_last, the gradients of app/models/layers.py, its
optimizer). The peer is the same network in torch's default memory layout, with torch's own layers and SGD. Both run in
one process, in turn, from the same weights, on one core. There, other load on the machine affects both alike; two
threads that wait for each other would measure that load.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from _claims import Claim, in_turn, quick, report, seconds

from app.config import load
from app.models import build_backbone, iresnet18
from app.runtime.optimizer import build_optimizer

SIZE = 112


def stepper(network: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor) -> Callable[[], None]:
    def step() -> None:
        network(images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> int:
    is_quick = quick()
    batch, rounds = (4, 2) if is_quick else (16, 9)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = load(["backbone=iresnet18"])
    layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
    images = torch.randn(batch, 3, SIZE, SIZE)
    plain = iresnet18().train()
    network = build_backbone(config.backbone).train().to(memory_format=layout)
    network.load_state_dict(plain.state_dict())
    o = config.train.optimizer
    rates = {"lr": 1e-3, "momentum": o.momentum, "nesterov": o.nesterov, "weight_decay": o.weight_decay}
    theirs = torch.optim.SGD(plain.parameters(), **rates)
    mine = build_optimizer(config.train.optimizer, [{"params": list(network.parameters()), "lr": 1e-3}])
    ours, peer = stepper(network, mine, images.to(memory_format=layout)), stepper(plain, theirs, images)
    fast, slow, ratio = in_turn(lambda: batch / seconds(ours), lambda: batch / seconds(peer), rounds)
    claim = Claim("training step of IResNet18, one core", fast, slow, "images/s", ratio, 1.3)
    return report("train_step", [claim], is_quick=is_quick)


if __name__ == "__main__":
    raise SystemExit(main())
