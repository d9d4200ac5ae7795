"""Check that machines without a shared disk train on the same images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.data.dataset import Dataset
from app.errors import WrongUse
from app.runtime.dist import World, from_main, together

LOOKED_AT = 64  # images, evenly spread; 2.4 MB

INSTEAD = "give every machine the same images.npy with the manifest.json and labels beside it"


def refuse_others(data: Sequence[Dataset], here: World) -> None:
    """Compare every rank's data sets with rank 0's. Raises WrongUse on all ranks if they differ.

    A run on one machine skips the check: its processes opened the same files.
    """
    if not here.several_machines:
        return
    own = [what_it_is(one) for one in data]
    wanted = from_main(own, here)
    with together(here):
        if len(own) != len(wanted):
            raise WrongUse(
                f"{len(own)} runs were requested here and {len(wanted)} there; give every machine the same command"
            )
        for mine, first in zip(own, wanted, strict=True):
            for what in mine:
                if mine[what] != first[what]:
                    raise WrongUse(
                        f"its data differs from {here.machines[0]}: {what} {mine[what]} here and {first[what]} "
                        f"there; {INSTEAD}"
                    )


def what_it_is(data: Dataset) -> dict[str, Any]:
    """Properties that must be equal on all machines, by the name for messages; the simplest come first."""
    # The files of shards have only the held-out images in common.
    common = np.arange(len(data.images)) if data.part is None else data.held_out_rows
    some = common[np.linspace(0, len(common) - 1, LOOKED_AT).astype(np.int64)] if len(common) else common
    return {
        "data set": data.dataset_id,
        "rows per block": data.block_rows,
        "images": len(data.images),
        "fraction": data.fraction,
        "images to train on": len(data.train_rows),
        "rows to train on (digest)": digest(data.train_rows),
        "labels (digest)": digest(data.labels),
        "classes (digest)": digest(data.classes),
        f"{LOOKED_AT} of the images (digest)": digest(data.images[some]),
    }


def digest(values: NDArray[Any] | None) -> str | None:
    return None if values is None else hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()[:12]
