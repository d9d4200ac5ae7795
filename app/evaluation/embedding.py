"""Compute embeddings for evaluation on any number of processes; flip sum optional, not normalised.

Letters: N images, n of this process, B batch, D embedding size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from app.config import BackboneConfig
from app.data.augment import to_float
from app.data.dataset import Rows
from app.evaluation.image_set import Faces
from app.evaluation.verification import Embeddings
from app.models.embedder import Embedder
from app.runtime.dist import World, gather_rows, share, together

# On a CPU the activations of a large batch do not fit the cache, and each layer allocates their memory again.
CPU_BATCH = 4
T = TypeVar("T")


def batch_size_for(wanted: int, here: World) -> int:
    return min(wanted, CPU_BATCH) if here.device.type == "cpu" else wanted


def own_rows(count: int, batch_size: int, here: World) -> Rows:
    """This process's rows of `count` images, in whole batches that are the same for any world size.

    Rounding in a batched product may depend on the batch. With fixed batches, results do not depend on the world size.
    """
    batches = share(np.arange(-(-count // batch_size)), here)
    if len(batches) == 0:
        return np.empty(0, np.int64)
    return np.arange(batches[0] * batch_size, min((batches[-1] + 1) * batch_size, count))


def embed_all(
    network: nn.Module,
    images: Faces,
    backbone: BackboneConfig,
    here: World,
    *,
    batch_size: int,
    flip: bool,
    interrupted: Callable[[], bool] = lambda: False,
) -> tuple[Embeddings, float]:
    """Return embeddings [N, D] of all processes' images, fp32, equal on each process; and XNorm, their mean length.

    `images` are this process's [n, 112, 112, 3]; `backbone` has the side that the network takes, and D. With `flip` the
    embedding of the mirrored image is added; XNorm is the mean over both, before they are added. Raises WrongUse on all
    processes if an image is unreadable. Once
    `interrupted` returns true, the remaining images are skipped; the caller must then agree with the other processes to
    stop.
    """
    embedder = Embedder(network, backbone.image_size, device=here.device, flip=flip)
    result = torch.empty(len(images), backbone.embedding_dim + 1, device=here.device)  # the last column: length

    def read(start: int) -> tuple[int, Tensor] | None:
        return None if interrupted() else (start, torch.from_numpy(images[start : start + batch_size]))

    @torch.inference_mode()
    def embed(batch: tuple[int, Tensor] | None) -> None:
        if batch is None:
            return
        start, pixels = batch
        x = to_float(pixels.to(here.device), backbone.image_size).contiguous(memory_format=torch.channels_last)
        into = result[start : start + len(x)]
        into[:, :-1], into[:, -1] = embedder(x)

    with together(here):
        for_each(range(0, len(images), batch_size), read, embed, here.device)
    whole = gather_rows(result, here).cpu().numpy()
    return np.ascontiguousarray(whole[:, :-1]), float(whole[:, -1].astype(np.float64).mean())


def for_each(starts: Iterable[int], read: Callable[[int], T], embed: Callable[[T], None], device: torch.device) -> None:
    """Read batches in threads, and embed each: on a CPU in its thread, on a GPU in the calling one, in order.

    On a CPU each thread computes on one core. For convolutions of few small images, a second batch in parallel gains
    more than a second core for the first batch. Results of a single core are also rounded the same for any number of
    cores.

    A GPU has memory for one batch, so batches take turns there. cuDNN would also choose its algorithms, and torch
    allocate workspaces, anew in each thread. Batches that wait for the GPU are at most as many as the threads.
    """
    cores, waiting = torch.get_num_threads(), deque[Future[T]]()
    if device.type != "cuda":
        try:
            with ThreadPoolExecutor(cores, "embed", torch.set_num_threads, (1,)) as threads:
                for _ in threads.map(lambda start: embed(read(start)), starts):
                    pass
        finally:
            torch.set_num_threads(cores)  # otherwise threads that torch makes later also use one core
        return
    with ThreadPoolExecutor(cores, "read") as threads:
        for start in starts:
            waiting.append(threads.submit(read, start))
            if len(waiting) > cores:
                embed(waiting.popleft().result())
        for batch in waiting:
            embed(batch.result())
