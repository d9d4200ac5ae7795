"""ViT for faces (Dosovitskiy et al. 2020, arXiv:2010.11929) in the structure of arcface_torch's.

Parameter names match, so published weights load unchanged.

Differences from a plain ViT: no class token, all tokens flattened into the embedding layers as in IResNet; ReLU6; no
bias for queries, keys and values; 8 heads at any width. Patches of 9 pixels cut 108 of 112 pixels into 12 x 12 tokens;
the remaining 4 on the right and at the bottom are not used.

Training may drop a random choice of tokens for each image (as in MAE, He et al. 2021, arXiv:2111.06377). The blocks do
not see dropped tokens; after the last norm a learned token takes their places. All random choices come from torch's
global generator.

Letters: B batch, S side of the image, L tokens, n tokens kept, D width, E embedding size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from app.config import BackboneConfig
from app.models.fourier import fourier_layer

HEADS = 8
BN_EPS = 2e-5
PARITY_MASK_RATIO = 0.1  # the published code used this for any mask ratio above 0, which it did not pass on


class Attention(nn.Module):
    """Self-attention of 8 heads: [B, n, D] -> the same.

    `precision` of queries, keys and values: fp32, as published, or auto, which leaves it to autocast.
    """

    def __init__(self, width: int, dropout: float, precision: str) -> None:
        super().__init__()
        self.precision = precision
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        qkv = self.qkv(x).view(b, n, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)  # [3, B, heads, n, D / heads]
        # Products of queries and keys grow while a large network trains; 16 bits overflow or round them. An error in
        # the exponent of a softmax becomes an equal relative error in every weight.
        if self.precision == "fp32":  # at least
            qkv = qkv.to(torch.promote_types(qkv.dtype, torch.float32))
        q, k, v = qkv.unbind(0)
        with torch.autocast(x.device.type, enabled=False):  # all three have the precision that is wanted
            x = F.scaled_dot_product_attention(q, k, v)
        return self.dropout(self.proj(x.transpose(1, 2).reshape(b, n, width)))


class Mlp(nn.Module):
    """[B, n, D] -> [B, n, 4 D] -> [B, n, D]"""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.dropout(F.relu6(self.fc1(x)))))


class DropPath(nn.Module):
    """Drop a branch for a share of the images while training (stochastic depth, arXiv:1603.09382).

    Kept branches are scaled up, so that the mean does not change.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return x
        kept = torch.rand(len(x), 1, 1, device=x.device) >= self.probability
        return x * (kept.to(x.dtype) / (1 - self.probability))


class Block(nn.Module):
    """Attention and MLP, each after a norm and with a shortcut: [B, n, D] -> the same."""

    def __init__(self, width: int, dropout: float, drop_path: float, attention_precision: str) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, dropout, attention_precision)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """A token for each whole patch, row by row: [B, 3, S, S] -> [B, L, D], L = (S // patch_size)²."""

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """images [B, 3, S, S] in [-1, 1] -> embeddings [B, E], not normalised.

    `layers` has one number, the count of blocks; `width` is a multiple of 8. `drop_path` is the probability that the
    last block is dropped for an image; it rises linearly from 0 at the first. `mask_ratio` of the tokens are dropped
    while training; with `parity_mask_ratio` any ratio above 0 means 0.1, as in the published code.
    `gradient_checkpointing` computes each block a second time in the backward pass instead of keeping its activations.
    `attention_precision` is fp32, or auto for that of autocast.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        (depth,), width = config.layers, config.width
        tokens = (config.image_size // config.patch_size) ** 2
        self.mask_ratio = config.mask_ratio
        if config.parity_mask_ratio and config.mask_ratio > 0:
            self.mask_ratio = PARITY_MASK_RATIO
        self.gradient_checkpointing = config.gradient_checkpointing
        self.fourier_transform_layer = fourier_layer(config.fourier, config.image_size)
        self.patch_embed = PatchEmbed(width, config.patch_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        # Published weights contain a mask token, used or not. As a parameter without gradients it would stop training
        # on two GPUs.
        self.mask_token.requires_grad = self.mask_ratio > 0
        self.dropout = nn.Dropout(config.dropout)
        drop_paths = [config.drop_path * i / max(1, depth - 1) for i in range(depth)]
        blocks = (Block(width, config.dropout, drop_path, config.attention_precision) for drop_path in drop_paths)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)
        self.feature = nn.Sequential(
            nn.Linear(tokens * width, width, bias=False),
            nn.BatchNorm1d(width, eps=BN_EPS),
            nn.Linear(width, config.embedding_dim, bias=False),
            nn.BatchNorm1d(config.embedding_dim, eps=BN_EPS),
        )
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        # Both ends stay in 32 bits regardless of autocast, as published. The first layer is cheap; the sums of the last
        # ones over 73,728 inputs lose accuracy in 16 bits. The residual stream stays in 32 bits too.
        with torch.autocast(images.device.type, enabled=False):
            x = self.fourier_transform_layer(images.to(self.pos_embed.dtype))
            x = self.dropout(self.patch_embed(x) + self.pos_embed)  # [B, L, D]
        masked = self.training and self.mask_ratio > 0
        if masked:
            places = self._places_kept(x)
            x = x.gather(1, places)  # [B, n, D]
        for block in self.blocks:
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)  # repeats the same random choices
            else:
                x = block(x)
        with torch.autocast(images.device.type, enabled=False):
            x = self.norm(x)
            if masked:
                x = self.mask_token.expand(len(x), self.pos_embed.shape[1], -1).scatter(1, places, x)  # [B, L, D]
            return self.feature(x.flatten(1))

    def _places_kept(self, x: Tensor) -> Tensor:
        """Draw the tokens to keep for each image: [B, n, D], the same for all numbers of a token."""
        b, tokens, width = x.shape
        kept = max(1, int(tokens * (1 - self.mask_ratio)))
        order = torch.rand(b, tokens, device=x.device).argsort(1)
        return order[:, :kept, None].expand(-1, -1, width)
