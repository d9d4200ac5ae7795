"""ViT: published sizes and names, a naive reference, masking, stochastic depth, recomputing, precision."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from app.config import CONF, BackboneConfig, load
from app.models import build_backbone
from app.models.vit import Attention, DropPath, VisionTransformer

# name: parameters, drop path of the last block, mask ratio, gradient checkpointing (blocks are computed twice)
PUBLISHED = {
    "vit_t": (19_137_792, 0.1, 0.1, False),
    "vit_t_dp005_mask0": (19_137_792, 0.05, 0.0, False),
    "vit_s": (76_023_296, 0.1, 0.1, False),
    "vit_s_dp005_mask_0": (76_023_296, 0.05, 0.0, False),
    "vit_b": (113_833_472, 0.1, 0.1, True),
    "vit_b_dp005_mask_005": (113_833_472, 0.05, 0.05, True),
    "vit_l": (255_684_352, 0.1, 0.1, True),
    "vit_l_dp005_mask_005": (255_684_352, 0.05, 0.05, True),
    "vit_h": (756_393_984, 0.1, 0.0, True),
}


def shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_network_has_its_published_size(name: str) -> None:
    """The first line of its file says the size."""
    count, drop_path, mask_ratio, twice = PUBLISHED[name]
    with torch.device("meta"):
        network = build_backbone(load([f"backbone={name}"]).backbone)
    assert sum(p.numel() for p in network.parameters()) == count
    assert f"{count:,} parameters" in (CONF / "backbone" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert network.blocks[0].drop_path.probability == 0
    assert network.blocks[-1].drop_path.probability == drop_path
    assert (network.mask_ratio, network.gradient_checkpointing) == (mask_ratio, twice)


def test_vit_has_the_names_and_shapes_of_published_weights() -> None:
    with torch.device("meta"):
        names = shapes(build_backbone(load(["backbone=vit_s"]).backbone))
    block = {
        "norm1.weight": (512,),
        "norm1.bias": (512,),
        "attn.qkv.weight": (1536, 512),
        "attn.proj.weight": (512, 512),
        "attn.proj.bias": (512,),
        "norm2.weight": (512,),
        "norm2.bias": (512,),
        "mlp.fc1.weight": (2048, 512),
        "mlp.fc1.bias": (2048,),
        "mlp.fc2.weight": (512, 2048),
        "mlp.fc2.bias": (512,),
    }
    norm = ("weight", "bias", "running_mean", "running_var")
    expected = {
        "pos_embed": (1, 144, 512),
        "mask_token": (1, 1, 512),
        "patch_embed.proj.weight": (512, 3, 9, 9),
        "patch_embed.proj.bias": (512,),
        **{f"blocks.{i}.{name}": shape for i in range(12) for name, shape in block.items()},
        "norm.weight": (512,),
        "norm.bias": (512,),
        "feature.0.weight": (512, 73_728),
        "feature.2.weight": (512, 512),
        **{f"feature.{i}.{name}": (512,) for i in (1, 3) for name in norm},
        **{f"feature.{i}.num_batches_tracked": () for i in (1, 3)},
    }
    assert {name: tuple(shape) for name, shape in names.items()} == expected


def small(**options: Any) -> VisionTransformer:
    """A small network with random numbers only, also where they normally begin at 0 or 1."""
    torch.manual_seed(0)
    settings = {"width": 16, "embedding_dim": 6, "image_size": 32, "patch_size": 9, **options}
    network = VisionTransformer(BackboneConfig(layers=[3], **settings))
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.1 if tensor.ndim < 2 else torch.randn_like(tensor) / 4)
    return network


def images(count: int = 4, size: int = 32) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(7)) * 2 - 1


def layer_norm(x: np.ndarray, w: dict[str, np.ndarray], name: str) -> np.ndarray:
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return normal * w[f"{name}.weight"] + w[f"{name}.bias"]


def batch_norm(x: np.ndarray, w: dict[str, np.ndarray], name: str) -> np.ndarray:
    normal = (x - w[f"{name}.running_mean"]) / np.sqrt(w[f"{name}.running_var"] + 2e-5)
    return normal * w[f"{name}.weight"] + w[f"{name}.bias"]


def by_hand(image: np.ndarray, w: dict[str, np.ndarray], patch: int, depth: int) -> np.ndarray:
    """The embedding of one image [3, S, S], head by head."""
    side = image.shape[1] // patch
    width = w["pos_embed"].shape[-1]
    kernel = w["patch_embed.proj.weight"].reshape(width, -1)
    tokens = []
    for i in range(side):
        for j in range(side):
            piece = image[:, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
            tokens.append(kernel @ piece.ravel() + w["patch_embed.proj.bias"])
    x = np.stack(tokens) + w["pos_embed"][0]
    size = width // 8
    for b in range(depth):
        name = f"blocks.{b}"
        queries, keys, values = np.split(layer_norm(x, w, f"{name}.norm1") @ w[f"{name}.attn.qkv.weight"].T, 3, 1)
        heads = []
        for h in range(8):
            part = slice(h * size, (h + 1) * size)
            alike = np.exp(queries[:, part] @ keys[:, part].T * size**-0.5)
            heads.append(alike / alike.sum(1, keepdims=True) @ values[:, part])
        x = x + np.hstack(heads) @ w[f"{name}.attn.proj.weight"].T + w[f"{name}.attn.proj.bias"]
        inner = layer_norm(x, w, f"{name}.norm2") @ w[f"{name}.mlp.fc1.weight"].T + w[f"{name}.mlp.fc1.bias"]
        x = x + np.clip(inner, 0, 6) @ w[f"{name}.mlp.fc2.weight"].T + w[f"{name}.mlp.fc2.bias"]
    flat = layer_norm(x, w, "norm").ravel()
    hidden = batch_norm(w["feature.0.weight"] @ flat, w, "feature.1")
    return batch_norm(w["feature.2.weight"] @ hidden, w, "feature.3")


def test_the_network_is_its_formula() -> None:
    network = small(mask_ratio=0.5, drop_path=0.5, dropout=0.5).double().eval()  # all three apply in training only
    w = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    x = images(2).double()
    expected = np.stack([by_hand(image, w, 9, 3) for image in x.numpy()])
    assert np.allclose(network(x).detach().numpy(), expected, atol=1e-9)


@pytest.mark.parametrize(("size", "patch"), [(112, 9), (50, 8), (32, 32), (17, 9)])
def test_any_image_size_gives_an_embedding_and_the_rest_at_the_edge_is_not_seen(size: int, patch: int) -> None:
    config = BackboneConfig("vit", [2], width=16, embedding_dim=24, image_size=size, patch_size=patch)
    network = build_backbone(config).eval()
    assert network.pos_embed.shape[1] == (size // patch) ** 2
    x = images(2, size)
    seen = size // patch * patch
    cut = x.clone()
    cut[..., seen:, :] = cut[..., seen:] = 0
    assert network(x).shape == (2, 24)
    assert torch.equal(network(x), network(cut))


def test_masking_leaves_out_its_share_and_puts_the_token_in_their_places() -> None:
    network = small(mask_ratio=0.4, image_size=36).train()  # 16 tokens, of which int(9.6) stay
    seen: list[Tensor] = []
    network.blocks[0].register_forward_hook(lambda _, args, __: seen.append(args[0]))
    network.feature.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    network(images(3, 36))
    tokens, flat = seen
    assert tokens.shape == (3, 9, 16)
    left_out = (flat.view(3, 16, 16) == network.mask_token).all(2)
    assert (left_out.sum(1) == 7).all()
    assert not torch.equal(left_out[0], left_out[1])  # each image has its own random choice
    whole = network.patch_embed(images(3, 36)) + network.pos_embed
    for image in range(3):
        kept = whole[image][~left_out[image]]
        distance = (kept[:, None] - tokens[image][None]).abs().amax(2)
        assert (distance.min(1).values < 1e-5).all()  # back in their own places, in any order inside the blocks


def test_what_is_behind_the_blocks_stands_in_its_own_place() -> None:
    """Without blocks, each token that is kept comes out in its own place."""
    network = small(mask_ratio=0.4).train()
    network.blocks = nn.ModuleList()
    flat: list[Tensor] = []
    network.feature.register_forward_hook(lambda _, args, __: flat.append(args[0]))
    network(images())
    whole = network.norm(network.patch_embed(images()) + network.pos_embed)
    got = flat[0].view_as(whole)
    left_out = (got == network.mask_token).all(2)
    assert left_out.any()
    assert torch.allclose(got[~left_out], whole[~left_out], atol=1e-5)


@pytest.mark.parametrize(("ratio", "parity", "expected"), [(0.05, False, 0.05), (0.05, True, 0.1), (0.0, True, 0.0)])
def test_parity_means_a_tenth_whatever_the_ratio(ratio: float, parity: bool, expected: float) -> None:
    config = BackboneConfig("vit", [1], width=16, image_size=32, mask_ratio=ratio, parity_mask_ratio=parity)
    assert build_backbone(config).mask_ratio == expected


def test_a_ratio_that_would_leave_no_token_keeps_one() -> None:
    network = small(mask_ratio=0.95).train()
    assert torch.isfinite(network(images())).all()


@pytest.mark.parametrize("ratio", [0.0, 0.3])
def test_every_trained_parameter_has_a_gradient(ratio: float) -> None:
    """A parameter without a gradient would stop training on several ranks; the mask token trains only if it is used."""
    network = small(mask_ratio=ratio, drop_path=0.5).train()
    network(images()).square().sum().backward()
    trained = [name for name, p in network.named_parameters() if p.requires_grad]
    assert [name for name, p in network.named_parameters() if p.grad is None and p.requires_grad] == []
    assert ("mask_token" in trained) == (ratio > 0)


def test_drop_path_rises_from_nothing_and_keeps_the_mean() -> None:
    assert [block.drop_path.probability for block in small(drop_path=0.4).blocks] == [0.0, 0.2, 0.4]
    torch.manual_seed(0)
    path = DropPath(0.25).train()
    x = torch.ones(20_000, 2, 3)
    y = path(x)
    assert y.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert (y == y[:, :1, :1]).all()  # an image is kept or dropped as a whole
    assert abs(float(y.mean()) - 1) < 0.02
    assert path.eval()(x) is x


def test_random_choices_follow_the_global_seed() -> None:
    network = small(mask_ratio=0.3, drop_path=0.5, dropout=0.2).train()
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(network(images()))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


CHECKPOINTED = {
    "vit": {"layers": [2], "width": 16, "mask_ratio": 0.3, "drop_path": 0.5},
    "iresnet": {"layers": [1, 2], "width": 8},
    "mobilefacenet": {"layers": [1, 2, 1, 1], "width": 64},
}


@pytest.mark.parametrize("name", CHECKPOINTED)
def test_computing_twice_changes_no_number(name: str) -> None:
    """Loss, gradients, and BN's averages and counters are equal; BN still counts each batch once."""
    results = []
    for twice in (False, True):
        torch.manual_seed(0)
        config = BackboneConfig(
            name=name, embedding_dim=8, image_size=32, dropout=0.2, gradient_checkpointing=twice, **CHECKPOINTED[name]
        )
        network = build_backbone(config).train()
        loss = network(images(6)).square().sum()
        loss.backward()
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        results.append((loss, gradients, network.state_dict(), network.eval()(images(2))))
    (loss, gradients, state, evaluated), (loss_, gradients_, state_, evaluated_) = results
    assert torch.equal(loss, loss_)
    assert all(torch.equal(a, b) for a, b in zip(gradients, gradients_, strict=True))
    assert all(torch.equal(state[key], state_[key]) for key in state)
    assert torch.equal(evaluated, evaluated_)


@pytest.mark.parametrize("name", CHECKPOINTED)
def test_computing_twice_keeps_less(name: str) -> None:
    kept = []
    for twice in (False, True):
        config = BackboneConfig(
            name=name, embedding_dim=8, image_size=32, gradient_checkpointing=twice, **CHECKPOINTED[name]
        )
        network = build_backbone(config).train()
        saved: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.nbytes) or t, lambda t: t):
            network(images(6))
        kept.append(sum(saved))
    assert kept[1] < 0.7 * kept[0]


def test_attention_is_exact_to_32_bits_for_16_bit_queries_and_keys() -> None:
    """Late in training products are large: 16 bits would round away the differences that decide the attention."""
    torch.manual_seed(0)
    attention = Attention(64, 0.0, "fp32")
    nn.init.normal_(attention.qkv.weight, std=1.5)
    seen: list[Tensor] = []
    attention.qkv.register_forward_hook(lambda _, __, out: seen.append(out))
    attention.proj.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    with torch.autocast("cpu", torch.bfloat16):
        attention(torch.randn(2, 12, 64))
    qkv, attended = seen
    assert qkv.dtype == torch.bfloat16
    assert attended.dtype == torch.float32
    queries, keys, values = qkv.double().view(2, 12, 3, 8, 8).permute(2, 0, 3, 1, 4)
    products = queries @ keys.transpose(2, 3) / 8**0.5
    assert products.abs().max() > 100
    expected = (products.softmax(3) @ values).transpose(1, 2).reshape(2, 12, 64)
    assert torch.allclose(attended.double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 5e-3), (torch.float16, 1e-3)])
def test_attention_in_the_precision_of_training_stays_within_its_rounding(dtype: torch.dtype, bound: float) -> None:
    torch.manual_seed(0)
    network = small(attention_precision="auto").eval()
    network_64 = copy.deepcopy(network).double()
    attended = set[torch.dtype]()
    for block in network.blocks:
        block.attn.proj.register_forward_hook(lambda _, args, __: attended.add(args[0].dtype))
    with torch.no_grad(), torch.autocast("cpu", dtype):
        found = network(images())
    with torch.no_grad():
        expected = network_64(images().double())
    assert attended == {dtype}
    assert float((found.double() - expected).norm() / expected.norm()) < bound
    with_fp32 = small().eval()
    with_fp32.load_state_dict(network.state_dict())
    assert torch.equal(network(images()), with_fp32(images()))  # without autocast the key changes nothing


def test_autocast_reaches_the_blocks_and_neither_end() -> None:
    network = small().eval()
    types = {}
    for name in ("patch_embed", "blocks.0.attn.qkv", "blocks.2.mlp.fc2", "blocks.2", "feature"):
        network.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: types.update({name: out.dtype}))
    with torch.autocast("cpu", torch.bfloat16):
        network(images().bfloat16())
    assert types == {
        "patch_embed": torch.float32,
        "blocks.0.attn.qkv": torch.bfloat16,
        "blocks.2.mlp.fc2": torch.bfloat16,
        "blocks.2": torch.float32,
        "feature": torch.float32,
    }


def test_channels_last_gives_the_same_embeddings() -> None:
    network = small().eval()
    x = images()
    plain = network(x)
    last = network.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    assert torch.allclose(plain, last, atol=1e-4)


def test_it_learns_four_images_by_heart() -> None:
    torch.manual_seed(0)
    config = BackboneConfig(layers=[2], width=32, embedding_dim=4, image_size=32, mask_ratio=0.1, drop_path=0.1)
    network = VisionTransformer(config).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    x, labels = images(), torch.arange(4)
    for _ in range(40):
        loss = nn.functional.cross_entropy(network(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.4
