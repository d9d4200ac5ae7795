"""Networks. `BACKBONES` names the families that `backbone.name` may choose; the published sizes of each have a
constructor of their own."""

from __future__ import annotations

from torch import nn

from app.config import BackboneConfig
from app.models.iresnet import IResNet, iresnet18, iresnet34, iresnet50, iresnet100, iresnet200
from app.models.mobilefacenet import MobileFaceNet, mobilefacenet

__all__ = [
    "BACKBONES",
    "build_backbone",
    "iresnet18",
    "iresnet34",
    "iresnet50",
    "iresnet100",
    "iresnet200",
    "mobilefacenet",
]

BACKBONES = {"iresnet": IResNet, "mobilefacenet": MobileFaceNet}


def build_backbone(config: BackboneConfig) -> nn.Module:
    """The network that turns images [B, 3, S, S] in [-1, 1] into embeddings [B, D]."""
    return BACKBONES[config.name](
        config.layers,
        width=config.width,
        embedding_dim=config.embedding_dim,
        dropout=config.dropout,
        image_size=config.image_size,
    )
