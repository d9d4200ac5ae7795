"""One step (forward, backward, update) of the class centres: 100,000 classes, 512 numbers, 128 images, on one core.

On one core, other load on the machine affects both sides alike. Ours compares with a tenth of the centres and updates
those. The peer is the dense head that it replaces: normalised weights, the same margin, torch's cross-entropy and its
fused SGD. At rate 1 both compute the same loss.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from app.config.schema import HeadConfig, OptimizerConfig
from app.models.partial_fc import PartialFC
from app.runtime.dist import World
from benchmarks._claims import Claim, in_turn, quick, report, seconds

DIM, BATCH, LR = 512, 128, 0.02
SETTINGS = OptimizerConfig("sgd", lr=LR, momentum=0.9, nesterov=False, weight_decay=5e-4)
Step = Callable[[], float]


def ours(classes: int, rate: float, embeddings: Tensor, labels: Tensor) -> tuple[PartialFC, Step]:
    head = HeadConfig("cosface", sample_rate=rate)
    layer = PartialFC(classes, DIM, head, SETTINGS, World(0, 1, torch.device("cpu")), seed=0)

    def step() -> float:
        loss, _ = layer(embeddings.detach().requires_grad_(), labels)
        loss.backward()
        layer.step(LR)
        return float(loss.detach())

    return layer, step


def plain(start: Tensor, embeddings: Tensor, labels: Tensor) -> Step:
    weight = start.clone().requires_grad_()
    o = SETTINGS
    sgd = torch.optim.SGD([weight], lr=LR, momentum=o.momentum, weight_decay=o.weight_decay, fused=True)
    rows = torch.arange(len(labels))

    def step() -> float:
        unit = F.normalize(embeddings.detach().requires_grad_(), dim=1)
        logits = 64 * F.linear(unit, F.normalize(weight, dim=1))
        logits[rows, labels] -= 64 * 0.4
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        sgd.step()
        sgd.zero_grad()
        return float(loss.detach())

    return step


def main() -> int:
    is_quick = quick()
    classes, rounds = (10_000, 2) if is_quick else (100_000, 7)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    embeddings, labels = 20 * F.normalize(torch.randn(BATCH, DIM), dim=1), torch.randint(0, classes, (BATCH,))
    layer, whole = ours(classes, 1.0, embeddings, labels)
    dense = plain(layer.centres.tables["weight"], embeddings, labels)
    losses = [(whole(), dense()) for _ in range(3)]
    apart = max(abs(a - b) / b for a, b in losses)
    print(f"losses of three steps at rate 1, ours and plain: {losses}")
    _, sampled = ours(classes, 0.1, embeddings, labels)

    def rate_of(step: Step) -> float:
        return 1 / seconds(step)

    what = f"C={classes:,}, D={DIM}, B={BATCH}, one core"
    fast, slow, ratio = in_turn(lambda: rate_of(sampled), lambda: rate_of(dense), rounds)
    full, dense_again, of_full = in_turn(lambda: rate_of(whole), lambda: rate_of(dense), rounds)
    claims = [
        Claim(f"rate 0.1, {what}", fast, slow, "steps/s", ratio, 3.0),
        Claim(f"rate 1, {what}", full, dense_again, "steps/s", of_full, 1.0),
        Claim("loss at rate 1, three steps: error", apart * 1e6, 10.0, "1e-6", 1e-5 / max(apart, 1e-12), 1.0),
    ]
    return report("partial_fc", claims, is_quick=is_quick)


if __name__ == "__main__":
    raise SystemExit(main())
