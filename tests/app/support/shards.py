"""Write the file of one shard of a prepared data set, as staging does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from app.data.dataset import choose_blocks, rows_of_blocks
from app.data.shards import file_blocks


def write_shard(whole: Path, folder: Path, number: int, of: int, fraction: float = 1.0) -> Path:
    """Write images.npy, labels.npy and manifest.json of shard `number` of `of` to `folder`. Returns the images."""
    manifest = json.loads(whole.with_name("manifest.json").read_text())
    rows, held, block = (manifest[key] for key in ("rows", "held_out_rows", "block_rows"))
    selected = rows_of_blocks(choose_blocks(rows - held, block, fraction), block, rows - held)
    selected = np.concatenate([selected, np.arange(rows - held, rows)])
    blocks = file_blocks(len(selected), held, block, number, of)
    there = selected[rows_of_blocks(blocks, block, len(selected))]
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "images.npy", np.load(whole)[there])
    np.save(folder / "labels.npy", np.load(whole.with_name("labels.npy"))[selected])
    shard = {"number": number, "of": of, "rows": len(selected)}
    selection = {"of": manifest["dataset_id"], "fraction": fraction} if fraction < 1 else None
    told = {**manifest, "rows": len(there), "shard": shard, "selection": selection}
    (folder / "manifest.json").write_text(json.dumps(told))
    return folder / "images.npy"
