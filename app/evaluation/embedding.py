"""Embeddings to be measured: of each image and its mirror image, summed and not normalised, on any number of processes.

Letters: N images, n of this process, B batch, D embedding size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from threading import Lock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.data.augment import to_float
from app.data.dataset import Rows
from app.evaluation.image_set import Faces, never, refused_together
from app.evaluation.verification import Embeddings
from app.runtime.dist import World, gather_rows, share

# On a CPU the intermediate results of a large batch leave the cache, and their memory is asked for anew in each layer.
CPU_BATCH = 4
FOLD_TOLERANCE = 1e-5  # of a unit embedding


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
    network = folded(network.eval(), image_size).to(here.device, memory_format=torch.channels_last)
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
            views = [network(x).float()] + ([network(x.flip(3)).float()] if flip else [])
            into = result[start : start + len(x)]
            into[:, :-1] = sum(views)
            into[:, -1] = sum(view.norm(dim=1) for view in views) / len(views)

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


@torch.no_grad()  # not inference_mode: its tensors cannot be moved or laid out anew outside of it
def folded(network: nn.Module, image_size: int) -> nn.Module:
    """A copy of a network in eval mode with each BN that follows a convolution folded into its weights.

    It says the same within `FOLD_TOLERANCE` in less time. Which BN follows which convolution is read from the order
    of a module's parts; where that says wrong things, or weights lose too much, the copy is not changed.
    """
    parameter = next(network.parameters())
    probe = torch.rand(4, 3, image_size, image_size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    probe = probe.to(parameter.device, parameter.dtype)
    quick = copy.deepcopy(network)
    try:
        _fold(quick)
        agrees = _agree(network(probe), quick(probe))
    except RuntimeError:  # two neighbours of different sizes, which belong to nothing in common
        agrees = False
    return quick if agrees else copy.deepcopy(network)


def _fold(network: nn.Module) -> None:
    for module in list(network.modules()):
        parts = list(module.named_children())
        for (name, conv), (bn_name, bn) in pairwise(parts):
            if isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d):
                setattr(module, name, nn.utils.fuse_conv_bn_eval(conv, bn))
                setattr(module, bn_name, nn.Identity())


def _agree(a: Tensor, b: Tensor) -> bool:
    return bool((F.normalize(a.double(), dim=1) - F.normalize(b.double(), dim=1)).abs().max() <= FOLD_TOLERANCE)
