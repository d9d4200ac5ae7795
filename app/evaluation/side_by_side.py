"""Measure several versions of one network on the same sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from app.config import BackboneConfig
from app.evaluation.embedding import batch_size_for, embed_all, own_rows
from app.evaluation.image_set import ImageSet, decode
from app.runtime.dist import ALONE

Figures = dict[str, dict[str, Any]]  # by set: its measure, and a number for each network


def side_by_side(networks: Mapping[str, nn.Module], sets: Sequence[ImageSet], backbone: BackboneConfig) -> Figures:
    """The ranking number of each network on each set, with mirror images; None if embeddings are not finite.

    Raises WrongUse for an unreadable image.
    """
    batch_size = batch_size_for(1, ALONE)
    figures: Figures = {}
    for images in sets:
        decoded = decode(images, own_rows(images.count, batch_size, ALONE), ALONE)
        figures[images.name] = {"measure": images.protocol.measure}
        for name, network in networks.items():
            embeddings, _ = embed_all(network, decoded, backbone, ALONE, batch_size=batch_size, flip=True)
            outcome = images.protocol.judge(embeddings, ALONE) if np.isfinite(embeddings).all() else None
            figures[images.name][name] = outcome.numbers[outcome.headline] if outcome else None
    return figures
