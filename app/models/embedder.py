"""Prepare a network for mining and evaluation: eval mode, BN folded into convolutions, the requested precision.

Letters: B batch, S side, D embedding size.
"""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.runtime.precision import exact

FOLD_TOLERANCE = 1e-5  # largest change of any number of a unit embedding in fp32


class Embedder:
    """Embeds batches with a copy of a network. The network itself and its mode do not change.

    `precision` applies to the network's products (autocast); embeddings are fp32. With `flip` the embedding of the
    mirrored image is added. With `compiled` the copy is compiled for batches of one size; torch compiles once for all
    copies of a network. A smaller batch is filled up.
    """

    def __init__(
        self,
        network: nn.Module,
        image_size: int,
        *,
        device: torch.device | None = None,
        precision: torch.dtype = torch.float32,
        flip: bool = False,
        compiled: bool = False,
    ) -> None:
        self.image_size, self.precision, self.flip, self.compiled = image_size, precision, flip, compiled
        self.network = folded(network, image_size).to(device, memory_format=torch.channels_last)
        if compiled:
            self.network = torch.compile(self.network, dynamic=False)
        self.size = 0  # of the largest batch so far

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return embeddings [B, D] of images [B, 3, S, S] in [-1, 1], not normalised, and their lengths [B].

        With `flip` the length is the mean over both, before they are added.
        """
        count = len(x)
        if self.compiled:
            self.size = max(self.size, count)
            x = filled_up(x, self.size)
        with torch.autocast(x.device.type, self.precision, enabled=self.precision != torch.float32):
            views = [self.network(x)[:count].float()]
            if self.flip:
                views.append(self.network(x.flip(3))[:count].float())
        lengths = [torch.linalg.vector_norm(view, dim=1) for view in views]
        return (views[0] + views[1], (lengths[0] + lengths[1]) / 2) if self.flip else (views[0], lengths[0])


def filled_up(x: Tensor, size: int) -> Tensor:
    """Return images [B, 3, S, S], channels last in memory, with copies of the last one up to `size` of them."""
    if len(x) == size:
        return x
    return torch.cat([x, x[-1:].expand(size - len(x), -1, -1, -1)]).contiguous(memory_format=torch.channels_last)


@torch.no_grad()  # not inference_mode: its tensors cannot be moved, nor change their memory format, outside of it
def folded(network: nn.Module, image_size: int) -> nn.Module:
    """Copy a network in eval mode, with each BN that follows a convolution folded into the convolution's weights.

    Its unit embeddings equal those of the network within `FOLD_TOLERANCE`, in less time. The order of a module's
    children determines which BN follows which convolution. Where that guess is wrong, or folding loses too much
    precision, the copy keeps its BN.
    """
    copied = copy.deepcopy(network).eval()
    pairs = _pairs(copied)
    if not pairs:
        return copied
    parameter = next(network.parameters())
    probe = torch.rand(4, 3, image_size, image_size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    probe = probe.to(parameter.device, parameter.dtype)
    try:
        with exact(parameter.device):  # TF32 and autocast round more than the tolerance
            before = copied(probe)
            for module, conv, name, bn in pairs:
                of_bn = bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
                conv.weight, conv.bias = nn.utils.fuse_conv_bn_weights(conv.weight, conv.bias, *of_bn)
                setattr(module, name, nn.Identity())
            agrees = _agree(before, copied(probe))
    except RuntimeError:  # two adjacent layers of different sizes, which do not belong together
        agrees = False
    return copied if agrees else copy.deepcopy(network).eval()


def _pairs(network: nn.Module) -> list[tuple[nn.Module, nn.Conv2d, str, nn.BatchNorm2d]]:
    """Return each convolution that a BN follows, with the module that has both, and the BN's name there."""
    return [
        (module, conv, name, bn)
        for module in network.modules()
        for (_, conv), (name, bn) in pairwise(module.named_children())
        if isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d)
    ]


def _agree(a: Tensor, b: Tensor) -> bool:
    return bool((F.normalize(a.double(), dim=1) - F.normalize(b.double(), dim=1)).abs().max() <= FOLD_TOLERANCE)
