"""Networks, by family.

`BACKBONES` lists the families that `backbone.name` accepts; each published size is a file in conf/backbone.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from app.config import BackboneConfig
from app.models.iresnet import IResNet
from app.models.mobilefacenet import MobileFaceNet
from app.models.vit import VisionTransformer

BACKBONES = {"iresnet": IResNet, "mobilefacenet": MobileFaceNet, "vit": VisionTransformer}
VIT_ALONE = ("patch_size", "drop_path", "mask_ratio", "parity_mask_ratio", "attention_precision")


def build_backbone(config: BackboneConfig) -> nn.Module:
    """Build the network that maps images [B, 3, S, S] in [-1, 1] to embeddings [B, D]."""
    options: dict[str, Any] = {
        "width": config.width,
        "embedding_dim": config.embedding_dim,
        "dropout": config.dropout,
        "image_size": config.image_size,
        "fourier": config.fourier,
        "gradient_checkpointing": config.gradient_checkpointing,
    }
    if config.name == "vit":
        options |= {name: getattr(config, name) for name in VIT_ALONE}
    return BACKBONES[config.name](config.layers, **options)
