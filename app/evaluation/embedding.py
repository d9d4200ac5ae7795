"""Embeddings to be measured: of each image and its mirror image, summed and not normalised, on any number of processes.

Letters: N images, n of this process, B batch, D embedding size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from threading import Lock

import numpy as np
import torch
from torch import nn

from app.data.augment import to_float
from app.data.dataset import Rows
from app.evaluation.image_set import Faces, never, refused_together
from app.evaluation.verification import Embeddings
from app.models.embedder import Embedder
from app.runtime.dist import World, gather_rows, share

# On a CPU the intermediate results of a large batch leave the cache, and their memory is asked for anew in each layer.
CPU_BATCH = 4


def batch_size_for(wanted: int, here: World) -> int:
    return min(wanted, CPU_BATCH) if here.device.type == "cpu" else wanted


def own_rows(count: int, batch_size: int, here: World) -> Rows:
    """This process's images of N: whole batches, so that an image is in the same batch whoever works on it.

    What a batched product rounds may depend on the batch; in the same batches, results do not depend on the number
    of processes.
    """
    batches = share(np.arange(-(-count // batch_size)), here)
    if len(batches) == 0:
        return np.empty(0, np.int64)
    return np.arange(batches[0] * batch_size, min((batches[-1] + 1) * batch_size, count))


def embed_all(
    network: nn.Module,
    images: Faces,
    here: World,
    *,
    image_size: int,
    batch_size: int,
    embedding_dim: int,
    flip: bool,
    interrupted: Callable[[], bool] = never,
) -> tuple[Embeddings, float]:
    """Embeddings [N, D] of all processes' images, fp32, the same on each; and XNorm, their mean length.

    images: this process's, [n, 112, 112, 3]. With `flip` the embedding of the mirrored image is added, and the mean
    length is over both, before they are added. Raises WrongUse on all processes for an image that cannot be read. From
    when `interrupted` says so the rest is left out; the caller then agrees with the other processes to stop.
    """
    embedder = Embedder(network, image_size, device=here.device, flip=flip)
    result = torch.empty(len(images), embedding_dim + 1, device=here.device)  # the last column: length
    # The cores work on a batch each. A GPU has one turn at a time, as it has memory for one batch; what is decoded
    # meanwhile waits for it.
    turn = Lock() if here.device.type == "cuda" else nullcontext()

    @torch.inference_mode()
    def embed(start: int) -> None:
        if interrupted():
            return
        pixels = torch.from_numpy(images[start : start + batch_size])
        with turn:
            x = to_float(pixels.to(here.device), image_size).contiguous(memory_format=torch.channels_last)
            into = result[start : start + len(x)]
            into[:, :-1], into[:, -1] = embedder(x)

    with refused_together(here), a_core_each() as threads:
        for _ in threads.map(embed, range(0, len(images), batch_size)):
            pass
    whole = gather_rows(result, here).cpu().numpy()
    return np.ascontiguousarray(whole[:, :-1]), float(whole[:, -1].astype(np.float64).mean())


@contextmanager
def a_core_each() -> Iterator[ThreadPoolExecutor]:
    """As many threads as torch uses cores, each of which computes on one.

    Convolutions of few small images gain less from a second core than a second batch beside the first does; and what
    is computed on one core is rounded the same, however many there are.
    """
    cores = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(cores, "embed", torch.set_num_threads, (1,)) as threads:
            yield threads
    finally:
        torch.set_num_threads(cores)  # else threads that torch makes later would have one core, too
