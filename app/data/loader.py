"""Feed rows of images.npy to the device: one thread copies batches into reused buffers ahead of the training step.

Copying rows into an existing buffer runs at memory speed (benchmarks/loader.py). So one background thread per process
keeps a GPU busy, without worker processes.

A batch is sent as one parcel of bytes: the images and their random numbers or other tensors. For a GPU the thread uses
its own stream, so the copy overlaps with the previous step and the host does not wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from app.data.augment import to_float
from app.data.dataset import Rows
from app.data.encoded import read_into
from app.data.shards import Images

AHEAD = 2  # batches copied in advance
ALIGNED = 16  # bytes: the alignment of each tensor in a parcel


@dataclass(frozen=True)
class Asked:
    """A requested batch: image rows, and a function that prepares the batch's other tensors."""

    rows: Rows
    prepare: Callable[[], tuple[Sequence[Tensor], Any]] = lambda: ((), None)  # called in the feed's thread
    seed: int = 0  # of the batch's random numbers


@dataclass(frozen=True)
class Parcel:
    """A batch on the device."""

    asked: Asked
    images: Tensor  # uint8 [B, S, S, 3] on the device; on the CPU a buffer that is reused, see `feed`
    tensors: list[Tensor]  # from `prepare`, on the device; never overwritten
    rest: Any  # the second result of `prepare`


Part = tuple[torch.dtype, tuple[int, ...], int, int]  # a tensor in a parcel: dtype, shape, offset, size in bytes


def feed(images: Images, batches: Iterable[Rows], device: torch.device) -> Iterator[tuple[Rows, Tensor]]:
    """Yield each array of rows [B] with its images, a uint8 tensor [B, S, S, 3] on `device`.

    On the CPU the tensor is a view of a reused buffer: finish with it before requesting the next one.
    """
    for parcel in parcels(images, (Asked(rows) for rows in batches), device):
        yield parcel.asked.rows, parcel.images


def parcels(images: Images, batches: Iterable[Asked], device: torch.device) -> Iterator[Parcel]:
    """Yield the requested batches in order; each is prepared and sent in advance.

    Raises IndexError for rows that the images do not have.
    """
    sender = Sender(images, device)
    with ThreadPoolExecutor(1, thread_name_prefix="feed") as thread:
        waiting: deque[Future[Sent]] = deque()
        for number, asked in enumerate(batches):
            rows = asked.rows
            if len(rows) and not (rows.min() >= 0 and rows.max() < len(images)):
                raise IndexError(f"rows {rows.min()}..{rows.max()} of {len(images)} images")
            waiting.append(thread.submit(sender.send, number % (AHEAD + 1), asked))
            if len(waiting) > AHEAD:
                yield sender.receive(waiting.popleft().result())
        while waiting:
            yield sender.receive(waiting.popleft().result())


@dataclass(frozen=True)
class Sent:
    """A batch whose copy to the device has been started."""

    asked: Asked
    bytes: Tensor  # on the device
    parts: list[Part]
    rest: Any
    event: torch.cuda.Event | None  # signals that the copy is complete; None on a CPU


class Sender:
    """Fill one buffer per slot (pinned for a GPU) and send it. `send` runs in the feed's thread, `receive` does not."""

    def __init__(self, images: Images, device: torch.device) -> None:
        self.images, self.device = images, device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.buffers = [torch.empty(0, dtype=torch.uint8)] * (AHEAD + 1)
        self.read: list[torch.cuda.Event | None] = [None] * (AHEAD + 1)  # signals that a buffer may be reused

    def send(self, slot: int, asked: Asked) -> Sent:
        tensors, rest = asked.prepare()
        shape = (len(asked.rows), *self.images.shape[1:])
        parts = layout([*((t.dtype, tuple(t.shape)) for t in tensors), (torch.uint8, shape)])
        event = self.read[slot]
        if event is not None:
            event.synchronize()
        parcel = self._buffer(slot, parts[-1][2] + parts[-1][3])
        *places, pixels = unpack(parcel, parts)
        for place, tensor in zip(places, tensors, strict=True):
            place.copy_(tensor)
        read_into(self.images, asked.rows, pixels.numpy())
        if self.stream is None:
            return Sent(asked, parcel, parts, rest, None)
        with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
            there = parcel.to(self.device, non_blocking=True)
            sent = torch.cuda.Event()
            sent.record(self.stream)
        self.read[slot] = sent
        return Sent(asked, there, parts, rest, sent)

    def receive(self, sent: Sent) -> Parcel:
        """Return the batch, ready for use on the caller's stream."""
        if sent.event is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(sent.event)
            sent.bytes.record_stream(stream)  # keeps the memory allocated while that stream may read it
        *tensors, pixels = unpack(sent.bytes, sent.parts)
        if sent.event is None:  # the buffer will be overwritten
            tensors = [tensor.clone() for tensor in tensors]
        return Parcel(sent.asked, pixels, tensors, sent.rest)

    def _buffer(self, slot: int, size: int) -> Tensor:
        if len(self.buffers[slot]) < size:
            self.buffers[slot] = torch.empty(size, dtype=torch.uint8, pin_memory=self.stream is not None)
        return self.buffers[slot][:size]


def layout(tensors: Iterable[tuple[torch.dtype, tuple[int, ...]]]) -> list[Part]:
    """Lay out tensors of these types and shapes in one byte buffer."""
    parts, start = list[Part](), 0
    for dtype, shape in tensors:
        size = int(np.prod(shape)) * dtype.itemsize
        parts.append((dtype, shape, start, size))
        start += -(-size // ALIGNED) * ALIGNED
    return parts


def unpack(parcel: Tensor, parts: Iterable[Part]) -> list[Tensor]:
    """Views of the tensors in a byte buffer, placed by `layout`."""
    return [parcel[start : start + size].view(dtype).view(shape) for dtype, shape, start, size in parts]


def plain_views(images: Images, rows: Rows, image_size: int, batch_size: int, device: torch.device) -> Iterator[Tensor]:
    """Yield the images in order without augmentation, as network input: batches [<=B, 3, T, T]."""
    batches = (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
    for _, batch in feed(images, batches, device):
        yield to_float(batch, image_size).contiguous(memory_format=torch.channels_last)
