"""Candidates for a faster step: each is measured in turns with what runs today, in one process, on one input.

A record says `keep` if the result is equal within `bound` and the candidate at least `GAIN` times as fast. Only then
may it become the default, in a change of its own. On a CPU the checks show that the candidates run and are equal;
`keep` is left out there.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu.kernels import bucket_maxima, overlaps, swept
from benchmarks.gpu.rig import Rig, as_in_training, distance
from benchmarks.gpu.running import Missing, OutOfTime, Records

BF16 = 0.1  # of outputs and gradients of two networks that round to bf16 at other places
GAIN = 1.03  # less is within the noise of two rates
STEPS = 4  # MoCo's first step has no gradient: its queue is empty
Work = Callable[[], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Pair:
    """Two ways to compute the same tensors. `bound`: largest relative distance that rounding explains."""

    now: Work
    instead: Work
    bound: float = 0.0


def compared(rig: Rig, pair: Pair) -> dict[str, Any]:
    """Compare results first, then times, in turns: a card that grows hot slows both down."""
    apart = max(distance(found, right) for found, right in zip(pair.instead(), pair.now(), strict=True))
    times: dict[str, list[float]] = {"now": [], "instead": []}
    for number in range(rig.sized(13, 2)):
        for name, work in (("now", pair.now), ("instead", pair.instead)):
            rig.synchronize()
            started = time.perf_counter()
            work()
            rig.synchronize()
            if number >= rig.sized(3, 1):  # the first rounds warm up
                times[name].append(time.perf_counter() - started)
    now, instead = (statistics.median(values) for values in times.values())
    ms = {"now_ms": now * 1000, "instead_ms": instead * 1000, "times_as_fast": now / instead}
    found = {"distance": apart, "bound": pair.bound, "equal": apart <= pair.bound}
    return {**ms, **found, **({} if rig.on_cpu else {"keep": is_kept(apart, pair.bound, now / instead)})}


def is_kept(apart: float, bound: float, times_as_fast: float) -> bool:
    """PURE: whether a candidate may become the default; a result that is not a number is not equal."""
    return apart <= bound and times_as_fast >= GAIN


def compiled(rig: Rig, function: Any) -> Any:
    """Compile for the GPU; on a CPU trace and differentiate only, since its code generator takes minutes."""
    return torch.compile(function, dynamic=False, **({"backend": "aot_eager"} if rig.on_cpu else {}))


def trained(rig: Rig, module: nn.Module, x: Tensor) -> Work:
    """Return a forward and backward pass of `module` in bf16, which gives its output and all gradients."""

    def work() -> tuple[Tensor, ...]:
        module.zero_grad()
        given = x.detach().requires_grad_()
        with rig.autocast("bf16"):
            out = module(given)
        # Weighted: the mean square of what BN has normalised is a constant, whose gradient is rounding errors.
        weight = torch.randn(out.shape, generator=torch.Generator(rig.device).manual_seed(0), device=rig.device)
        (out.float() * weight).mean().backward()
        gradients = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
        return out.detach(), given.grad, torch.cat(gradients)

    return work


def bn_prelu(rig: Rig) -> Pair:
    """BN and PReLU in one kernel, forward and backward, at the size of the network's first stage."""
    from app.models.layers import PReLU

    batch, channels, side = rig.sized(128, 2), rig.sized(64, 8), rig.sized(112, 8)
    x = torch.randn(batch, channels, side, side, device=rig.device, dtype=torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last)
    module = nn.Sequential(nn.BatchNorm2d(channels), PReLU(channels)).to(rig.device)
    return Pair(trained(rig, module, x), trained(rig, compiled(rig, module), x), bound=BF16)


def augmentation(rig: Rig) -> Pair:
    """The views from uint8 in compiled kernels."""
    from app.config.schema import AugmentConfig
    from app.data.augment import Augment
    from app.runtime.precision import exact

    count = rig.sized(256, 4)
    augment = Augment(AugmentConfig(), 112)
    images = torch.from_numpy(rig.images[:count]).to(rig.device)
    draws = augment.draw(len(images), torch.Generator().manual_seed(0))
    draws = draws.with_tensors([tensor.to(rig.device) for tensor in draws.tensors()])
    views = compiled(rig, augment._views)

    def instead() -> tuple[Tensor]:
        with torch.no_grad(), exact(rig.device):
            return (views(images, draws),)

    return Pair(lambda: (augment(images, draws),), instead, bound=1e-3)  # a JPEG coefficient may round the other way


def infonce(rig: Rig) -> Pair:
    """The masked loss over the queue without several arrays [B, K]."""
    from app.config.schema import MocoConfig
    from app.models.moco import Queue, contrastive_loss

    torch.manual_seed(0)
    b, d, k = rig.sized(384, 8), 128, rig.sized(65_536, 64)
    unit = [F.normalize(torch.randn(n, d, device=rig.device), dim=1) for n in (b, b, k)]
    moco = MocoConfig(temperature=0.05, margin=0.15, mask_most_similar=0)
    queue = Queue(k, d).to(rig.device)
    queue.keys.copy_(unit[2])
    queue.rows.copy_(torch.arange(k, device=rig.device))
    rows, ids = torch.arange(b, device=rig.device), torch.arange(max(b, k) + b, device=rig.device) // 8

    def work(loss: Any) -> Work:
        def run() -> tuple[Tensor, ...]:
            queries = unit[0].detach().requires_grad_()
            value, _ = loss(queries, unit[1], queue, rows, rows, ids, moco)
            value.backward()
            return value.detach(), queries.grad

        return run

    return Pair(work(contrastive_loss), work(compiled(rig, contrastive_loss)), bound=5e-3)


def embedding_folded(rig: Rig) -> Pair:
    """A network with BN folded into convolutions, as mining and evaluation use it, against one as it was trained."""
    plain, folded, x = embedders(rig)
    return Pair(embedding(rig, plain, x), embedding(rig, folded, x), bound=BF16)


def embedding_compiled(rig: Rig) -> Pair:
    """The folded network compiled."""
    _, folded, x = embedders(rig)
    return Pair(embedding(rig, folded, x), embedding(rig, compiled(rig, folded), x), bound=BF16)


def embedders(rig: Rig) -> tuple[nn.Module, nn.Module, Tensor]:
    from app.config import load
    from app.models import build_backbone
    from app.models.batch_norm import calibrate
    from app.models.embedder import folded

    torch.manual_seed(0)
    size, name = rig.sized(112, 32), "iresnet_narrow" if rig.on_cpu else "iresnet50"
    network = build_backbone(load([f"backbone={name}", f"backbone.image_size={size}"]).backbone).to(rig.device)
    x = torch.randn(rig.sized(512, 4), 3, size, size, device=rig.device).contiguous(memory_format=torch.channels_last)
    calibrate(network, [x[:64]])
    plain = network.eval().to(memory_format=torch.channels_last)
    return plain, folded(network, size).to(memory_format=torch.channels_last), x


def embedding(rig: Rig, network: nn.Module, x: Tensor) -> Work:
    def work() -> tuple[Tensor]:
        with torch.no_grad(), rig.autocast("bf16"):
            return (F.normalize(network(x).float(), dim=1),)

    return work


def attention(rig: Rig) -> Pair:
    """A ViT with attention in the precision of training: backbone.attention_precision=auto against fp32."""
    from app.config import load
    from app.models import build_backbone

    size = rig.sized(112, 32)
    words = ["backbone=vit_b", f"backbone.image_size={size}"] + (["backbone.layers=[2]"] if rig.on_cpu else [])
    torch.manual_seed(0)
    x = torch.randn(rig.sized(64, 16), 3, size, size, device=rig.device)  # the last BN needs a real batch

    def work(precision: str) -> Work:
        torch.manual_seed(0)
        config = load([*words, f"backbone.attention_precision={precision}"]).backbone
        config.drop_path = config.mask_ratio = config.dropout = 0.0
        return trained(rig, build_backbone(config).to(rig.device).train(), x)

    return Pair(work("fp32"), work("auto"), bound=BF16)


def head_product(rig: Rig) -> Pair:
    """The cosines of a margin head from 16-bit factors, summed in fp32, against training's products in fp32 or TF32."""
    torch.manual_seed(0)
    batch, classes, dim = rig.sized(256, 8), rig.sized(200_000, 200), 512
    unit = F.normalize(torch.randn(batch, dim, device=rig.device), dim=1)
    centres = F.normalize(torch.randn(classes, dim, device=rig.device), dim=1)
    grad = torch.randn(batch, classes, device=rig.device) / classes

    def work(kind: torch.dtype) -> Work:
        def run() -> tuple[Tensor, ...]:
            a, b, g = (each.to(kind) for each in (unit, centres, grad))
            return (a @ b.T).float(), (g @ b).float(), (g.T @ a).float()

        return run

    return Pair(work(torch.float32), work(torch.bfloat16), bound=0.01)


def cuda_graphs(rig: Rig) -> Pair:
    """Whole steps with train.cuda_graphs=on against off, at a batch whose launches take as long as its kernels."""
    if rig.on_cpu:
        raise Missing("a GPU; tests/app/shadow/test_cuda_graphs.py emulates a capture")
    from benchmarks.gpu.steps import words
    from benchmarks.gpu.trainer import Trainer

    def steps(switch: str) -> Work:
        trainer = Trainer(rig, [*words(rig, "bf16", 64), f"train.cuda_graphs={switch}"])
        encoder: nn.Module = trainer.recipe.encoder  # type: ignore[union-attr] # the words choose the one that has it

        def weights() -> Tensor:
            return torch.cat([p.detach().flatten() for p in encoder.parameters()])

        start = weights()

        def work() -> tuple[Tensor, ...]:
            for _ in range(STEPS):
                trainer.step()
            return (weights() - start,)

        return work

    return Pair(steps("off"), steps("on"), bound=BF16)


def bucket_maximum(rig: Rig) -> Pair:
    """The maxima of the search's buckets without writing all scores; those of the best buckets' members come on top."""
    torch.manual_seed(0)
    queries, rows, dim, members = rig.sized(4096, 128), rig.sized(1_200_000, 4096), rig.sized(512, 32), 16
    rows -= rows % (members * 128)
    half = torch.float16 if not rig.on_cpu else torch.float32
    bank = F.normalize(torch.randn(rows, dim, device=rig.device), dim=1).to(half)
    asked = bank[:queries].clone()
    part = rig.sized(512, 64)  # of the queries at once: all scores would not fit beside the bank

    def now() -> tuple[Tensor]:
        found = [(some @ bank.T).view(len(some), members, -1).amax(1).float() for some in asked.split(part)]
        return (torch.cat(found),)

    return Pair(now, lambda: (bucket_maxima(asked, bank, members),), bound=2e-3)


def clusters(rig: Rig) -> Pair:
    """Edge overlaps and one sweep of label propagation on the device against the loops on the CPU: equal to the bit."""
    from app.mining.graph import sweep, weigh

    count, k = rig.sized(200_000, 600), rig.sized(32, 8)
    ids, cosine = lists_of_people(count, k)
    nobody = torch.arange(count, dtype=torch.int32)
    full, group = torch.full((count,), k, dtype=torch.int32), torch.zeros(count, dtype=torch.int32)
    large = torch.zeros(count, dtype=torch.bool)
    empty = torch.zeros(0, dtype=torch.int32)
    on_device = ids.to(rig.device), cosine.to(rig.device), nobody.to(rig.device)

    def now() -> tuple[Tensor, ...]:
        weight = torch.zeros(count, k, dtype=torch.uint16).numpy()
        new, yes = nobody.clone().numpy(), torch.ones(count, dtype=torch.bool).numpy()
        arrays = [each.numpy() for each in (ids, cosine, empty, full, large, group)]
        weigh(*arrays[:2], 0, arrays[0], *arrays[2:], 0.25, 0, weight, empty.numpy())
        sweep(arrays[0], arrays[3], weight, 0, nobody.numpy(), yes, yes.copy(), 0, 0, new)
        return torch.from_numpy(weight.astype("int32")), torch.from_numpy(new)

    def instead() -> tuple[Tensor, ...]:
        weight = overlaps(*on_device[:2], 0.25)
        return weight, swept(on_device[0], weight, on_device[2], seed=0, number=0)

    return Pair(now, instead, bound=0.0)


def lists_of_people(count: int, k: int) -> tuple[Tensor, Tensor]:
    """Return neighbour lists [count, k]: of people with about k images, with some strangers, falling cosines."""
    generator = torch.Generator().manual_seed(0)
    person = torch.arange(count) // k * k
    near = person[:, None] + torch.rand(count, k, generator=generator).argsort(1)
    strangers = torch.randint(0, count, (count, k), generator=generator)
    ids = torch.where(torch.rand(count, k, generator=generator) < 0.3, strangers, near).clamp_(max=count - 1)
    cosine = torch.rand(count, k, generator=generator).sort(1, descending=True).values
    return distinct(ids, count).int(), cosine


def distinct(ids: Tensor, count: int) -> Tensor:
    """Replace repeated entries of a list, and the image itself, by others: a list holds each image once."""
    while True:
        ordered, order = ids.sort(1)
        repeated = torch.zeros_like(ids, dtype=torch.bool)
        repeated.scatter_(1, order[:, 1:], ordered[:, 1:] == ordered[:, :-1])
        repeated |= ids == torch.arange(len(ids))[:, None]
        if not repeated.any():
            return ids
        ids = torch.where(repeated, (ids + 1 + torch.arange(ids.shape[1])) % count, ids)


CANDIDATES: dict[str, Callable[[Rig], Pair]] = {
    "bn_prelu": bn_prelu,
    "clusters": clusters,
    "head_product": head_product,
    "attention": attention,
    "embedding_folded": embedding_folded,
    "infonce": infonce,
    "augmentation": augmentation,
    "embedding_compiled": embedding_compiled,
    # Last: a fault of a kernel or of a capture may end every later use of the GPU in this process.
    "cuda_graphs": cuda_graphs,
    "bucket_maximum": bucket_maximum,
}


def candidates(rig: Rig) -> Records:
    """Measure every candidate; one that fails or lacks something does not stop the others."""
    with as_in_training(rig):
        for name, make in CANDIDATES.items():
            yield {"candidate": name, **tried(rig, make)}


def tried(rig: Rig, make: Callable[[Rig], Pair]) -> dict[str, Any]:
    try:
        return compared(rig, make(rig))
    except OutOfTime:
        raise
    except Missing as error:
        return {"left_out": f"needs {error}"}
    except Exception as error:  # a compiler's or a kernel's own
        return {"error": f"{type(error).__name__}: {error}"[:300], **({} if rig.on_cpu else {"keep": False})}
    finally:
        rig.clear()
        torch._dynamo.reset()
