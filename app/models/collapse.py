"""Detect collapse: self-supervised training can map all images to one vector.

Letters: n vectors, D size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from app.runtime.finite import NotFinite, is_finite

ENOUGH = 2048  # vectors measured; more cost time and give the same result


@torch.no_grad()
def spread(vectors: Tensor) -> dict[str, Any]:
    """Measure how far unit vectors [n, D] spread over the sphere.

    embedding_std: mean over dimensions of the standard deviation, times sqrt(D): 1 on the whole sphere, 0 in a point.
    effective_rank: exp of the entropy of the normalised singular values (Roy and Vetterli 2007): 1 … D.
    random_cosine: mean over pairs of different vectors: 0 on the whole sphere, 1 in a point.

    Raises NotFinite.
    """
    x = vectors[:ENOUGH].float().cpu()
    n, d = x.shape
    if not is_finite(x):
        raise NotFinite(f"{int((~x.isfinite()).any(1).sum())} of {n} embeddings are not finite")
    if n < 2:
        return {"embedding_std": None, "effective_rank": None, "random_cosine": None, "collapsed": False}
    # On a GPU cuSOLVER would allocate memory beside torch, which may hold all of it. On a core this takes 0.05 s.
    singular = torch.from_numpy(np.linalg.svd(x.numpy(), compute_uv=False))
    share = singular / singular.sum()
    rank = float(torch.exp(-torch.special.xlogy(share, share).sum()))
    cosine = float((x.sum(0).square().sum() - x.square().sum()) / (n * (n - 1)))
    return {
        "embedding_std": float(x.std(0).mean()) * d**0.5,
        "effective_rank": rank,
        "random_cosine": cosine,
        "collapsed": rank < 2 or cosine > 0.95,
    }
