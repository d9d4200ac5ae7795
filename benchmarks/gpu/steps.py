"""Speed of a training step, its waits for the device, and its memory."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.gpu.rig import Rig
from benchmarks.gpu.running import Records, Wrong
from benchmarks.gpu.trainer import Trainer

if TYPE_CHECKING:
    from app.config import Config

MOST_WAITS = 1


def step_speed(rig: Rig) -> Records:
    """Images a second of MoCo with IResNet50 by batch size and precision; useful settings first."""
    yield from speeds(rig, compiled=False)


def compiled_step_speed(rig: Rig) -> Records:
    """The same with train.compile=true. Each setting compiles for a minute, which is not counted."""
    yield from speeds(rig, compiled=True)


def speeds(rig: Rig, *, compiled: bool) -> Records:
    peak = matrix_rate(rig)
    for precision in ("bf16", "fp16", "fp32"):
        for size in (8,) if rig.on_cpu else (128, 384):
            if not rig.on_cpu or (precision != "fp16" and not compiled):
                yield measured(rig, precision, size, compiled=compiled, peak=peak)


def measured(rig: Rig, precision: str, size: int, *, compiled: bool, peak: float) -> dict[str, Any]:
    """Measure one setting. If it does not fit, or does not compile, the error is the result."""
    setting = {"precision": precision, "batch": size, "compile": compiled}
    rig.clear()
    try:
        trainer = Trainer(rig, words(rig, precision, size, compiled=compiled))
        if not rig.on_cpu:
            torch.backends.cudnn.benchmark = True
            torch.set_float32_matmul_precision("high")
        step_s = rig.seconds(trainer.step, rounds=8, warm_up=3)
        flop = flops(trainer) if not compiled else None
    except RuntimeError as error:  # includes running out of memory
        return {**setting, "error": f"{type(error).__name__}: {error}"[:200]}
    result = {**setting, "images_per_s": size / step_s, "step_ms": step_s * 1000}
    if flop is not None:
        result |= {"gflop_per_image": flop / size / 1e9, "of_matrix_rate": flop / step_s / peak}
    if not rig.on_cpu:
        result |= {"peak_gib": torch.cuda.max_memory_allocated(rig.device) / 2**30}
        result |= {"reserved_gib": torch.cuda.max_memory_reserved(rig.device) / 2**30}
    return {**result, "estimated_gib": estimate(trainer.config, len(trainer.data.images))}


def words(rig: Rig, precision: str, size: int, *, compiled: bool = False, recipe: str = "self_supervised") -> list[str]:
    """Return a command line: IResNet50 at 112 pixels on a GPU, a small network on a CPU."""
    small = ["backbone=iresnet_narrow", "backbone.image_size=32"]
    return [
        *(small if rig.on_cpu else ["backbone=iresnet50"]),
        *(["recipe.moco.queue_size=1024"] if rig.on_cpu and recipe == "self_supervised" else []),
        f"train.precision={precision}",
        f"train.batch.size={size}",
        f"train.compile={str(compiled).lower()}",
    ]


def matrix_rate(rig: Rig) -> float:
    """Return FLOP/s of a large bf16 product: the reference for shares at any precision of the step."""
    n = rig.sized(8192, 256)
    a = torch.randn(n, n, device=rig.device, dtype=torch.bfloat16)
    return 2 * n**3 / rig.seconds(lambda: a @ a)


def flops(trainer: Trainer) -> int:
    """Return the operations in one step's products and convolutions."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        trainer.step()
    return counter.get_total_flops()


def estimate(config: Config, rows: int) -> float | None:
    """Return GiB on the GPU by the plan's own estimate; None for a backbone without figures."""
    from deploy.specs import memory

    table = memory.read(Path(__file__).parents[2])
    need = memory.of_step(config.as_dict(), table, config.train.precision, None, memory.Extent(rows))
    return None if need.needed_bytes is None else need.needed_bytes / 2**30


def waits(rig: Rig) -> Records:
    """How often the host waits for the device in one step, counted by CUDA's sync warnings, with their lines.

    Raises Wrong for more than `MOST_WAITS`, once all are recorded.
    """
    counts = []
    for recipe in ("self_supervised", "supervised"):
        trainer = Trainer(rig, [f"recipe={recipe}", *words(rig, "bf16", rig.sized(64, 8), recipe=recipe)])
        for _ in range(3):
            trainer.step()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if not rig.on_cpu:
                torch.cuda.set_sync_debug_mode("warn")
            try:
                update = trainer.step()
            finally:
                if not rig.on_cpu:
                    torch.cuda.set_sync_debug_mode("default")
        update.verdict()
        told = [f"{w.filename.rsplit('/', 3)[-1]}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]
        counts.append(len(told))
        yield {"recipe": recipe, "waits": None if rig.on_cpu else len(told), "at": sorted(set(told))}
    if max(counts) > MOST_WAITS:
        raise Wrong(f"{counts} waits in a step, and {MOST_WAITS} is the claim")


def augmentation_share(rig: Rig) -> Records:
    """Time of the augmentation alone, next to that of the whole step."""
    size = rig.sized(128, 8)
    trainer = Trainer(rig, words(rig, "bf16", size))
    batch = next(trainer.batches)
    step_s = rig.seconds(trainer.step)
    augment_s = rig.seconds(lambda: trainer.recipe.augment(batch.images, batch.draws))
    yield {"batch": size, "augment_ms": augment_s * 1000, "step_ms": step_s * 1000, "share": augment_s / step_s}


def profile(rig: Rig) -> Records:
    """Where one step's time goes: a table in a separate file, and the largest entries."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    trainer = Trainer(rig, words(rig, "bf16", rig.sized(128, 8)))
    rig.seconds(trainer.step, rounds=1)
    kinds = [ProfilerActivity.CPU] if rig.on_cpu else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profiler(activities=kinds) as found:
        trainer.step()
        rig.synchronize()
    by = "self_cpu_time_total" if rig.on_cpu else "self_device_time_total"
    averages = found.key_averages()
    (rig.out / f"profile-{rig.card}.txt").write_text(averages.table(sort_by=by, row_limit=40), encoding="utf-8")
    longest = sorted(averages, key=lambda event: -getattr(event, by))[:8]
    yield {"ms": {event.key[:60]: getattr(event, by) / 1000 for event in longest}}
