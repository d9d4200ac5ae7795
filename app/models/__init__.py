"""Networks, by family.

`BACKBONES` lists the families that `backbone.name` accepts; each published size is a file in conf/backbone.
"""

from __future__ import annotations

from torch import nn

from app.config import BackboneConfig
from app.models.iresnet import IResNet
from app.models.mobilefacenet import MobileFaceNet
from app.models.vit import VisionTransformer

BACKBONES = {"iresnet": IResNet, "mobilefacenet": MobileFaceNet, "vit": VisionTransformer}


def build_backbone(config: BackboneConfig) -> nn.Module:
    """Build the network that maps images [B, 3, S, S] in [-1, 1] to embeddings [B, D]."""
    return BACKBONES[config.name](config)
