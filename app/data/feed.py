"""Rows of images.npy to the device: one thread copies whole batches into reused buffers ahead of the training step.

Copying rows into a buffer that exists already runs at memory speed (benchmarks/loader.py), so no worker processes are
needed: one background thread per process keeps a GPU fed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.data.augment import to_float
from app.data.dataset import Rows

AHEAD = 2  # batches copied before they are asked for


def feed(images: NDArray[np.uint8], batches: Iterable[Rows], device: torch.device) -> Iterator[tuple[Rows, Tensor]]:
    """Each array of rows [B], with those images as a uint8 tensor [B, S, S, 3] on `device`.

    A yielded tensor on the CPU is a view of a buffer that is overwritten two batches later; the caller uses it up
    before asking for the next.
    """
    pinned = device.type == "cuda"
    buffers: list[Tensor | None] = [None] * (AHEAD + 1)
    moved: list[torch.cuda.Event | None] = [None] * (AHEAD + 1)  # when the device has read a pinned buffer

    def copy(slot: int, rows: Rows) -> Tensor:
        event, buffer = moved[slot], buffers[slot]
        if event is not None:
            event.synchronize()
        if buffer is None or len(buffer) < len(rows):
            buffer = torch.empty((len(rows), *images.shape[1:]), dtype=torch.uint8, pin_memory=pinned)
            buffers[slot] = buffer
        # mode="clip" writes straight into `out`; the default checks every index through a temporary array.
        np.take(images, rows, axis=0, out=buffer[: len(rows)].numpy(), mode="clip")
        return buffer[: len(rows)]

    def move(slot: int, batch: Tensor) -> Tensor:
        if not pinned:
            return batch
        there = batch.to(device, non_blocking=True)
        moved[slot] = event = torch.cuda.Event()
        event.record()
        return there

    with ThreadPoolExecutor(1, thread_name_prefix="feed") as thread:
        waiting: deque[tuple[int, Rows, Future[Tensor]]] = deque()

        def oldest() -> tuple[Rows, Tensor]:
            slot, rows, batch = waiting.popleft()
            return rows, move(slot, batch.result())

        for number, rows in enumerate(batches):
            if len(rows) and not (rows.min() >= 0 and rows.max() < len(images)):
                raise IndexError(f"rows {rows.min()}..{rows.max()} of {len(images)} images")
            slot = number % len(buffers)
            waiting.append((slot, rows, thread.submit(copy, slot, rows)))
            if len(waiting) > AHEAD:
                yield oldest()
        while waiting:
            yield oldest()


def plain_views(
    images: NDArray[np.uint8], rows: Rows, image_size: int, batch_size: int, device: torch.device
) -> Iterator[Tensor]:
    """Those images unchanged, as the network sees them when it is not trained: batches [<=B, 3, T, T] in order."""
    batches = (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
    for _, batch in feed(images, batches, device):
        yield to_float(batch, image_size).contiguous(memory_format=torch.channels_last)
