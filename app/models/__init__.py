"""Networks, by family and published size.

`BACKBONES` lists the families that `backbone.name` accepts; each published size has its own constructor.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from app.config import BackboneConfig
from app.models.iresnet import IResNet, iresnet18, iresnet34, iresnet50, iresnet100, iresnet200, iresnet2060
from app.models.mobilefacenet import MobileFaceNet, mobilefacenet
from app.models.vit import (
    VisionTransformer,
    vit_b,
    vit_b_dp005_mask_005,
    vit_h,
    vit_l,
    vit_l_dp005_mask_005,
    vit_s,
    vit_s_dp005_mask_0,
    vit_t,
    vit_t_dp005_mask0,
)

__all__ = [
    "BACKBONES",
    "build_backbone",
    "iresnet18",
    "iresnet34",
    "iresnet50",
    "iresnet100",
    "iresnet200",
    "iresnet2060",
    "mobilefacenet",
    "vit_b",
    "vit_b_dp005_mask_005",
    "vit_h",
    "vit_l",
    "vit_l_dp005_mask_005",
    "vit_s",
    "vit_s_dp005_mask_0",
    "vit_t",
    "vit_t_dp005_mask0",
]

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
