"""Networks. `BACKBONES` names the families that `backbone.name` may choose."""

from __future__ import annotations

from torch import nn

from app.config import BackboneConfig
from app.models.iresnet import IResNet
from app.models.mobilefacenet import MobileFaceNet


def _iresnet(config: BackboneConfig) -> nn.Module:
    return IResNet(
        config.layers,
        width=config.width,
        embedding_dim=config.embedding_dim,
        dropout=config.dropout,
        image_size=config.image_size,
    )


def _mobilefacenet(config: BackboneConfig) -> nn.Module:
    return MobileFaceNet(
        config.layers,
        scale=config.width // 64,
        embedding_dim=config.embedding_dim,
        image_size=config.image_size,
    )


BACKBONES = {"iresnet": _iresnet, "mobilefacenet": _mobilefacenet}


def build_backbone(config: BackboneConfig) -> nn.Module:
    """The network that turns images [B, 3, S, S] in [-1, 1] into embeddings [B, D]."""
    return BACKBONES[config.name](config)
