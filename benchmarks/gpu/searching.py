"""Speed of embedding, searching and clustering, and of a step of a head with millions of classes."""

from __future__ import annotations

import dataclasses
import importlib.util
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.data.dataset import Dataset
from benchmarks.gpu.rig import Rig, as_in_training
from benchmarks.gpu.running import Records
from benchmarks.gpu.trainer import Trainer

DIM, NEIGHBOURS = 512, 32


def embedding(rig: Rig) -> Records:
    """Images a second that mining embeds, including the data feed, and how many BN layers are folded."""
    from app.mining.refresh import Interlude, embed_share
    from app.models.embedder import folded
    from benchmarks.gpu.steps import words

    for precision in ("fp32",) if rig.on_cpu else ("bf16", "fp16", "fp32"):
        trainer = Trainer(rig, words(rig, precision, 8))
        # Every image repeats: enough work for a rate, without drawing more faces.
        rows = np.tile(trainer.data.train_rows, rig.sized(8, 1))
        data = dataclasses.replace(trainer.data, train_rows=rows)
        between = Interlude(rig.work / "mining", lambda: False, lambda *_: None)

        def work(trainer: Trainer = trainer, data: Dataset = data, between: Interlude = between) -> Tensor:
            return embed_share(trainer.recipe.embedder, trainer.config, data, trainer.here, between)

        # On a GPU convolutions round differently, and folding keeps the BN of a network that it would change.
        network = trainer.recipe.embedder
        left = [
            sum(isinstance(m, nn.BatchNorm2d) for m in each.modules())
            for each in (network, folded(network, trainer.config.backbone.image_size))
        ]
        yield {
            "precision": precision,
            "images": len(rows),
            "images_per_s": len(rows) / rig.seconds(work, 3, 1),
            "bn_folded": left[0] - left[1],
        }


def evaluation(rig: Rig) -> Records:
    """Images a second of `train.eval.sets`, at the first evaluation of a run and at a later one."""
    from app.evaluation.embedding import embed_all
    from benchmarks.gpu.steps import words

    trainer, times = Trainer(rig, words(rig, "bf16", 8)), []
    backbone = trainer.config.backbone
    for _ in range(rig.sized(3, 2)):
        with as_in_training(rig):
            started = time.perf_counter()
            size = rig.sized(256, 16)
            embed_all(trainer.recipe.embedder, rig.images, backbone, trainer.here, batch_size=size, flip=True)
            times.append(time.perf_counter() - started)
    yield {"images": len(rig.images), "first_s": times[0], "images_per_s": len(rig.images) / times[-1]}


def people(count: int, device: torch.device) -> Tensor:
    """Return unit vectors [count, DIM] in random order: 11 images per person on average, cosines about 0.5."""
    generator = torch.Generator(device).manual_seed(0)
    centres = torch.randn(count // 11 + 1, DIM, generator=generator, device=device)
    bank = centres[torch.randint(0, len(centres), (count,), generator=generator, device=device)]
    for part in bank.split(2**16):
        part += torch.randn(len(part), DIM, generator=generator, device=device)
        part /= torch.linalg.vector_norm(part, dim=1, keepdim=True)
    return bank


def search_speed(rig: Rig) -> Records:
    """Queries a second: ours, the bare 16-bit product over the same tiles, and faiss on the GPU."""
    from app.mining.candidates import HalfPrecision
    from app.mining.knn import neighbours, search
    from app.runtime.dist import World

    here = World(0, 1, rig.device)
    for count in (2_000,) if rig.on_cpu else (200_000, 1_200_000):
        bank = people(count, rig.device)
        asked = min(count, rig.sized(65_536, 512))
        queries, own = bank[:asked], torch.arange(asked, device=rig.device)

        def ours(bank: Tensor = bank, queries: Tensor = queries, own: Tensor = own) -> object:
            return search(bank, 0, queries, own, NEIGHBOURS, "torch")

        record = {"rows": count, "queries_per_s": asked / rig.seconds(ours, 3, 1)}
        find = HalfPrecision(bank)

        half = queries.to(find.half)

        def bare(find: HalfPrecision = find, half: Tensor = half) -> None:
            for part in half.split(find.tile):
                torch.mm(part, find.rows.T, out=find.scores[: len(part)])

        record["bare_product_per_s"] = asked / rig.seconds(bare, 3, 1)
        del find
        rig.clear()
        started = time.perf_counter()
        neighbours(bank, NEIGHBOURS, here, backend="torch", placement="auto")
        record["all_rows_s"] = time.perf_counter() - started
        yield {**record, "faiss_per_s": faiss_rate(rig, bank, queries)}
        del bank, queries


def faiss_rate(rig: Rig, bank: Tensor, queries: Tensor) -> float | None:
    """Return queries a second of faiss.knn_gpu on the same vectors; None without faiss for GPUs."""
    if rig.on_cpu or importlib.util.find_spec("faiss") is None:
        return None
    import faiss
    import faiss.contrib.torch_utils

    if not hasattr(faiss, "StandardGpuResources"):
        return None
    resources = faiss.StandardGpuResources()
    metric = faiss.METRIC_INNER_PRODUCT
    return len(queries) / rig.seconds(
        lambda: faiss.knn_gpu(resources, queries, bank, NEIGHBOURS + 1, metric=metric), rounds=1, warm_up=1
    )


def mining(rig: Rig) -> Records:
    """Time from embeddings to pseudo-IDs: search, clusters, gate."""
    from app.config.schema import MiningConfig
    from app.mining.pseudo_ids import find_pseudo_ids
    from app.runtime.dist import World

    count = rig.sized(400_000, 1_000)
    bank = people(count, rig.device)
    started = time.perf_counter()
    found, report = find_pseudo_ids(bank, np.full(count, -1), None, MiningConfig(), World(0, 1, rig.device), seed=0)
    yield {
        "rows": count,
        "seconds": time.perf_counter() - started,
        "clusters": len(np.unique(found)),
        # Apart: its `left_out` counts images, and a record's own says that a check did not run.
        "report": {key: value for key, value in report.as_dict().items() if isinstance(value, float | int)},
    }


def partial_fc(rig: Rig) -> Records:
    """Time of a step of the head with two million classes, a tenth of them sampled."""
    from app.config.schema import HeadConfig, OptimizerConfig
    from app.models.partial_fc import PartialFC
    from app.runtime.dist import World

    classes, batch = rig.sized(2_000_000, 2_000), rig.sized(256, 16)
    here = World(0, 1, rig.device)
    config = HeadConfig(name="cosface", sample_rate=0.1)
    head = PartialFC(classes, DIM, config, OptimizerConfig(), here, seed=0).to(rig.device)
    embeddings = 20 * F.normalize(torch.randn(batch, DIM, device=rig.device), dim=1)
    labels = torch.randint(0, classes, (batch,), device=rig.device)

    def step() -> None:
        loss, _ = head(embeddings.detach().requires_grad_(), labels)
        loss.backward()
        head.step(0.1)

    yield {"classes": classes, "batch": batch, "sample_rate": 0.1, "step_ms": rig.seconds(step) * 1000}
