"""Check that the device computes the same as a CPU in float64 or fp32."""

from __future__ import annotations

import copy
import json
import signal
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu.rig import PRECISIONS, Rig, as_in_training, distance
from benchmarks.gpu.running import Missing, Records, Wrong

# Largest relative distance to float64 that rounding explains: of outputs, and of gradients of the first layer.
BOUNDS = {"fp32": (1e-4, 1e-2), "bf16": (0.1, 0.5), "fp16": (0.02, 0.2)}


def right(what: str, found: float, most: float) -> float:
    """Return `found`. Raises Wrong if it is more than `most`, or NaN."""
    if not found <= most:
        raise Wrong(f"{what}: {found:.3g} is more than {most:g}")
    return found


def machine_rates(rig: Rig) -> Records:
    """Peak rates of the card: a 16-bit product, and a memory copy."""
    n = rig.sized(8192, 256)
    a = torch.randn(n, n, device=rig.device, dtype=torch.bfloat16)
    x = torch.randn(rig.sized(2**29, 2**20), device=rig.device)
    y = torch.empty_like(x)
    product, copy_s = rig.seconds(lambda: a @ a), rig.seconds(lambda: y.copy_(x))
    yield {"bf16_tflop_s": 2 * n**3 / product / 1e12, "copy_gb_s": 2 * x.nbytes / copy_s / 1e9}


def augmentation(rig: Rig) -> Records:
    """Views on the device against the CPU's, in grey levels; inside autocast they are equal to the bit."""
    from app.config.schema import AugmentConfig
    from app.data.augment import Augment

    images = torch.from_numpy(rig.images[:32])
    for name, config in (
        ("default", AugmentConfig(noise=0.0)),
        ("jpeg alone", AugmentConfig(hue=0, blur=0, noise=0.0, jpeg=0.9)),
    ):
        augment = Augment(config, 112)

        def views(x: Tensor, augment: Augment = augment) -> Tensor:
            return augment(x, torch.Generator().manual_seed(3))

        on_cpu, on_device = views(images), views(images.to(rig.device))
        grey = (on_device.cpu() - on_cpu).abs().flatten() * 127.5
        for precision in ("bf16", "fp16"):
            with rig.autocast(precision):
                right(f"{name} in {precision}", float((views(images.to(rig.device)) - on_device).abs().max()), 0.0)
        # A JPEG coefficient halfway between two steps may round either way: a few pixels may differ by more.
        yield {"what": name, "mean_grey": right(name, float(grey.mean()), 0.1), "max_grey": float(grey.max())}


def networks(rig: Rig) -> Records:
    """Outputs and gradients of three families, both in eval mode, against float64 on the CPU."""
    from app.config import load
    from app.models import build_backbone
    from app.models.batch_norm import calibrate

    size = rig.sized(112, 32)
    for name in ("iresnet_narrow",) if rig.on_cpu else ("iresnet18", "mobilefacenet", "vit_t_dp005_mask0"):
        torch.manual_seed(0)
        config = load([f"backbone={name}", f"backbone.image_size={size}"]).backbone
        config.drop_path = 0.0
        network = build_backbone(config)
        x, weight = torch.randn(8, 3, size, size), torch.randn(8, config.embedding_dim)
        calibrate(network, [x])
        exact = copy.deepcopy(network).double()
        wanted, wanted_grad = outputs(exact, x.double(), weight.double())
        ours = network.to(rig.device, memory_format=torch.channels_last)
        for precision, (of_output, of_gradient) in BOUNDS.items():
            with rig.autocast(precision), no_tf32():
                output, gradient = outputs(
                    ours, x.to(rig.device).contiguous(memory_format=torch.channels_last), weight.to(rig.device)
                )
            yield {
                "network": name,
                "precision": precision,
                "output": right(f"{name} {precision}", distance(output, wanted), of_output),
                "gradient": right(f"gradient of {name} {precision}", distance(gradient, wanted_grad), of_gradient),
            }


def outputs(network: nn.Module, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return embeddings in eval mode, and the first weight's gradient of a weighted sum of normalised embeddings."""
    network.zero_grad()
    z = network.eval()(x)
    (F.normalize(z, dim=1) * weight).sum().backward()
    first = next(p for p in network.parameters() if p.requires_grad and p.ndim == 4)
    return z, first.grad


class no_tf32:  # noqa: N801 - used like a function
    """Compute fp32 products without TF32."""

    def __enter__(self) -> None:
        self.before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False

    def __exit__(self, *_: object) -> None:
        torch.set_float32_matmul_precision(self.before[0])
        torch.backends.cudnn.allow_tf32 = self.before[1]


def contrastive(rig: Rig) -> Records:
    """InfoNCE and the gradient of its queries, inside autocast, against float64 on the CPU."""
    from app.config.schema import MocoConfig
    from app.models.moco import Queue, contrastive_loss

    torch.manual_seed(0)
    b, d, k, images = 64, 128, rig.sized(16384, 512), 4096
    queries, keys, queued = (F.normalize(torch.randn(n, d), dim=1) for n in (b, b, k))
    rows, queue_rows, ids = torch.arange(b), torch.arange(k) % images, torch.arange(images) // 8
    wanted, wanted_grad = infonce(queries.double(), keys.double(), queued.double(), rows, queue_rows, ids)
    queue = Queue(k, d).to(rig.device)
    queue.keys.copy_(queued)
    queue.rows.copy_(queue_rows)
    key, row, key_row, pseudo_ids = (t.to(rig.device) for t in (keys, rows, rows + b, ids))
    moco = MocoConfig(temperature=0.05, margin=0.15, mask_most_similar=0)
    for precision in PRECISIONS:
        for tf32, (of_loss, of_gradient) in {False: (1e-5, 1e-3), True: (1e-4, 5e-3)}.items():
            q = queries.to(rig.device).requires_grad_()
            with rig.autocast(precision), no_tf32() if not tf32 else as_in_training(rig):
                loss, _ = contrastive_loss(q, key, queue, row, key_row, pseudo_ids, moco)
                (gradient,) = torch.autograd.grad(loss, q)
            yield {
                "precision": precision,
                "tf32": tf32,
                "loss": right("loss", distance(loss, wanted), of_loss),
                "gradient": right("gradient", distance(gradient, wanted_grad), of_gradient),
            }


def infonce(
    queries: Tensor, keys: Tensor, queued: Tensor, rows: Tensor, queue_rows: Tensor, ids: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the loss by its definition, and its gradient; key i is of row i + B, T is 0.05, the margin is 0.15."""
    queries = queries.clone().requires_grad_()
    own = (queue_rows == rows[:, None]) | (queue_rows == rows[:, None] + len(rows))
    masked = own | (ids[queue_rows] == ids[rows][:, None])
    positive = ((queries * keys).sum(1, keepdim=True) - 0.15) / 0.05
    negatives = (queries @ queued.T / 0.05).masked_fill(masked, -torch.inf)
    loss = (torch.cat([positive, negatives], 1).logsumexp(1) - positive[:, 0]).mean()
    return loss, torch.autograd.grad(loss, queries)[0]


def heads(rig: Rig) -> Records:
    """Loss and gradient of every margin head over all and over sampled classes, against the CPU."""
    from app.config.schema import HEADS, HeadConfig, OptimizerConfig
    from app.models.partial_fc import PartialFC
    from app.runtime.dist import World

    torch.manual_seed(0)
    classes, dim = rig.sized(5000, 200), 128
    embeddings, labels = 20 * torch.randn(64, dim), torch.randint(0, classes, (64,))

    def value(head: str, rate: float, device: torch.device) -> tuple[Tensor, Tensor]:
        config = HeadConfig(name=head, sample_rate=rate)
        layer = PartialFC(classes, dim, config, OptimizerConfig(), World(0, 1, device), seed=1).to(device)
        x = embeddings.to(device).requires_grad_()
        loss, _ = layer(x, labels.to(device))
        loss.backward()
        layer.step(0.1)
        return loss, x.grad

    for head in HEADS:
        for rate in (1.0, 0.3):
            wanted, wanted_grad = value(head, rate, torch.device("cpu"))
            with no_tf32():
                loss, gradient = value(head, rate, rig.device)
            yield {
                "head": head,
                "sample_rate": rate,
                "loss": right(head, distance(loss, wanted), 1e-4),
                "gradient": right(f"gradient of {head}", distance(gradient, wanted_grad), 1e-3),
            }


def feeding(rig: Rig) -> Records:
    """Images arrive unchanged while the device is busy: compares the sums of 60 batches."""
    from app.data.loader import feed

    rng, size = np.random.default_rng(0), rig.sized(2048, 64)
    busy = torch.randn(size, size, device=rig.device)
    rows = [rng.integers(0, len(rig.images), rig.sized(128, 16)) for _ in range(60)]
    sums = []
    for _, images in feed(rig.images, rows, rig.device):
        for _ in range(4):
            busy = (busy @ busy).clamp(-1, 1)
        sums.append(images.sum(dtype=torch.int64))
    wrong = sum(int(found) != int(rig.images[r].sum(dtype=np.int64)) for found, r in zip(sums, rows, strict=True))
    yield {"batches": len(rows), "wrong": right("batches that differ", wrong, 0)}


def search_is_exact(rig: Rig) -> Records:
    """Neighbours of both backends against brute force in float64, also where copies of an image fill the lists."""
    import importlib.util

    from app.mining.knn import neighbours
    from app.runtime.dist import World

    torch.manual_seed(0)
    bank = F.normalize(torch.randn(rig.sized(20_000, 500), 512) + 2 * torch.randn(512), dim=1)
    copies = torch.cat([bank[:300], bank[:1].repeat(rig.sized(3000, 200), 1)])
    for what, rows in (("people", bank), ("copies", copies)):
        scores = (rows.double().to(rig.device) @ rows.double().to(rig.device).T).fill_diagonal_(-9)
        wanted = scores.topk(20).values.cpu()
        del scores
        for backend in ("torch", "faiss") if importlib.util.find_spec("faiss") else ("torch",):
            found = neighbours(rows.to(rig.device), 20, World(0, 1, rig.device), backend=backend, placement="auto")
            worst = float((wanted - torch.from_numpy(np.asarray(found.cosine))).abs().max())
            yield {"what": what, "backend": backend, "worst_cosine": right(f"{what}, {backend}", worst, 1e-5)}


def large_tables(rig: Rig) -> Records:
    """Rows behind the 2^31st number of a table are read, written and moved, as those of millions of images are."""
    from app.mining.order import move_rows
    from app.models.moco import FeatureBank
    from app.runtime.dist import World
    from app.runtime.memory import free_bytes

    count, dim = rig.sized(4_400_000, 1_000), 512
    if not rig.on_cpu and (free_bytes(rig.device) or 0) < 12 * 2**30:
        raise Missing("12 GiB of free memory")
    with torch.device(rig.device):
        bank = FeatureBank(count, dim)
        rows, taken = torch.tensor([0, count // 2, count - 1, count - 1]), torch.ones(())
        number = (torch.arange(count) % 2048).half()  # fp16 holds these whole numbers
    values = torch.randn(len(rows), dim, device=rig.device).half()
    bank.put(rows, values, taken)  # of a repeated row the last one counts
    apart = bank.features.index_select(0, rows[:3]) != values[[0, 1, 3]]
    right("numbers of rows that were put", float(apart.sum()), 0)
    right("rows that were written besides", float(bank.features[:, 0].isfinite().sum()) - 3, 0)
    bank.features[:, 0] = bank.features[:, dim - 1] = number
    move_rows(bank.features, np.arange(count)[::-1].copy(), World(0, 1, rig.device))
    wrong = sum(int((bank.features[:, column] != number.flip(0)).sum()) for column in (0, dim - 1))
    yield {"numbers": count * dim, "wrong": right("rows that were moved to a wrong place", wrong, 0)}


def too_large(rig: Rig) -> Records:
    """A step without enough memory is named in a sentence, whoever notices it, and a smaller one then runs."""
    from app.runtime.out_of_memory import OutOfMemory, step_fits
    from benchmarks.gpu.steps import words
    from benchmarks.gpu.trainer import Trainer

    total = 0 if rig.on_cpu else torch.cuda.get_device_properties(rig.device).total_memory
    for gib in () if rig.on_cpu else (0.1, 0.5, 1.0, 2.0, 4.0):
        with as_in_training(rig):
            trainer = Trainer(rig, words(rig, "bf16", 256))
            limit = torch.cuda.memory_reserved(rig.device) + gib * 2**30
            torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), rig.device)
            try:
                with step_fits(trainer.config, rig.device):
                    trainer.step().verdict()
                raise Wrong(f"a step of 256 images fits into {gib:g} GiB")
            except OutOfMemory as error:
                yield {"gib": gib, "told": str(error)}
            finally:
                torch.cuda.set_per_process_memory_fraction(1.0, rig.device)
                del trainer
                rig.clear()
    if not Trainer(rig, words(rig, "bf16", 8)).step().verdict().taken:
        raise Wrong("a small step after the large ones was not taken")
    yield {"small_step": True}


def overflow(rig: Rig) -> Records:
    """A scale that overflows changes no weight and no average; a smaller one, halved on overflow, takes a step."""
    from benchmarks.gpu.trainer import Trainer

    # Not MoCo: its queue is empty in the first step, so the gradient is zero.
    words = ["recipe=supervised", "backbone=iresnet_narrow", "backbone.image_size=32", "train.batch.size=8"]
    t = Trainer(rig, [*words, "train.precision=fp16"])
    t.scaler = torch.amp.GradScaler(rig.device.type, init_scale=2.0**60)
    before = {name: tensor.clone() for name, tensor in t.recipe.modules.state_dict().items() if "counter" not in name}
    taken = t.step().verdict().taken
    changed = [
        name
        for name, tensor in t.recipe.modules.state_dict().items()
        if tensor.is_floating_point() and not torch.equal(tensor, before[name])
    ]
    if taken or changed:
        raise Wrong(f"taken: {taken}; changed by a step that was not taken: {changed[:5]}")
    t.scaler = torch.amp.GradScaler(rig.device.type, init_scale=2.0**8)
    if not any(t.step().verdict().taken for _ in range(8)):
        raise Wrong("no step was taken from a scale of 256 down to 1")
    yield {"skipped": True}


def experiments(rig: Rig) -> Records:
    """Run one experiment of each kind for a few updates at 32 pixels, by the command itself, and resume it."""
    from app import train
    from benchmarks.gpu.small import EXPERIMENTS, command_line

    for experiment in EXPERIMENTS:
        if rig.on_cpu and experiment not in ("drawn", "tryout_supervised"):
            continue  # tests/app/shadow runs all of them on a CPU, which takes minutes
        folder = rig.work / "runs" / experiment
        words = command_line(experiment, rig.data_path, folder, updates=8, rows=len(rig.images))
        words.append("run.report=false")  # another process, of some seconds
        handlers = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
        try:
            for epochs, resume in ((1, "none"), (2, "auto")):
                if train.main([*words, f"train.epochs={epochs}", f"train.resume={resume}"]) != 0:
                    raise Wrong(f"{experiment}: app.train ended with an error; see its output")
        finally:
            for name, handler in handlers.items():
                signal.signal(name, handler)
        yield {"experiment": experiment, **what_happened(folder)}


def what_happened(folder: Any) -> dict[str, Any]:
    """Return losses and skipped steps of a run. Raises Wrong if its last step was skipped or it did not resume."""
    told = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in told if event["event"] == "step"]
    starts = [event for event in told if event["event"] == "start"]
    if losses[-1] is None or not np.isfinite(losses[-1]) or starts[-1]["resumed_from"] is None:
        raise Wrong(f"{folder.name}: last loss {losses[-1]}, resumed from {starts[-1]['resumed_from']}")
    return {"steps": len(losses), "skipped": losses.count(None), "last_loss": losses[-1]}
