"""A small version of an experiment of conf/experiment: only what costs time changes, not whether it trains.

The shadow tests on a CPU and the check on a GPU run the same command lines.
"""

from __future__ import annotations

from pathlib import Path

from app.config import load

BATCH = 4
# The project's own, and published ones that together have each network family, margin, optimizer and way of sampling.
EXPERIMENTS = (
    "drawn",
    "ms1mv2_mbf",
    "ms1mv3_r50",
    "ms1mv3_r50_onegpu",
    "sniperface",
    "tryout",
    "tryout_supervised",
    "wf42m_pfc02_16gpus_r100",
    "wf42m_pfc03_40epoch_64gpu_vit_t_catface",
    "wf42m_pfc03_40epoch_8gpu_vit_b",
)


def command_line(experiment: str, data: Path, folder: Path, *, updates: int, rows: int, ranks: int = 1) -> list[str]:
    """Return the experiment's settings at 32 pixels, for `updates` updates an epoch on `rows` training images.

    Blocks of the data set must hold `BATCH` images. Mining begins in the second epoch at the latest.
    """
    config = load([f"experiment={experiment}"])
    accumulate = min(2, config.train.batch.grad_accum_steps)
    fraction = updates * BATCH * accumulate * ranks / rows
    words = [
        f"experiment={experiment}", f"data.binary_cache_path={data}", f"run.dir={folder}", "backbone.image_size=32",
        f"train.batch.size={BATCH}", f"train.batch.grad_accum_steps={accumulate}", "train.log_every_steps=1",
        f"data.data_fraction={fraction:.4f}", f"data.block_size={BATCH}", "train.eval.max_images=20",
        "train.checkpoint.keep=2",
    ]  # fmt: skip
    if config.recipe.name == "self_supervised":
        words.append(f"mining.start_epoch={min(1, config.mining.start_epoch)}")
        words += ["mining.max_largest_share=1", "mining.min_coverage=0"]  # one person is a large part of a dozen images
    return words
