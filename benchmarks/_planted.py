"""Generate synthetic identities of many kinds, to judge clusters. Even seeds are for tuning, odd seeds for results."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
NOISE = {"easy": 0.82, "medium": 1.15, "hard": 1.45}  # length of the noise on a unit centre: cosine .60, .43, .32


def unit(x: NDArray[np.floating]) -> Floats:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def normal(rng: np.random.Generator, count: int, dim: int) -> Floats:
    """Return rows of length about 1."""
    return rng.normal(size=(count, dim)).astype(np.float32) / np.float32(np.sqrt(dim))


def _owners(sizes: Ints, n: int) -> Ints:
    """Return the person of each image [n] from more people than needed; the last one is cut short."""
    return np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)[:n]


def equal(_: np.random.Generator, n: int) -> Ints:
    return _owners(np.full(n, 60, np.int32), n)


def pairs(rng: np.random.Generator, n: int) -> Ints:
    return _owners(rng.integers(2, 4, n).astype(np.int32), n)


def long_tail(rng: np.random.Generator, n: int) -> Ints:
    return _owners(np.minimum(2 + rng.pareto(1.1, n) * 4, n // 35).astype(np.int32), n)


def singletons(rng: np.random.Generator, n: int) -> Ints:
    alone = int(0.6 * n)
    rest = long_tail(rng, n - alone)
    return np.concatenate([rest, rest.max() + 1 + np.arange(alone, dtype=np.int32)])


def giants(rng: np.random.Generator, n: int) -> Ints:
    big = np.repeat(np.arange(4, dtype=np.int32), int(0.08 * n))
    return np.concatenate([big, 4 + long_tail(rng, n - len(big))])


SIZES: dict[str, Callable[[np.random.Generator, int], Ints]] = {
    "equal": equal,
    "pairs": pairs,
    "long_tail": long_tail,
    "singletons": singletons,
    "giants": giants,
    "twins": long_tail,
    "bursts": long_tail,
    "anisotropic": long_tail,
    "cone": long_tail,
    "low_dim": long_tail,
    "everything": singletons,
    "low_rank": long_tail,
}
KINDS = tuple(SIZES)


class Planted(NamedTuple):
    """Embeddings, the person of each, and what the generator knows of them; S directions have people or noise."""

    images: Floats  # [n, dim], unit
    labels: Ints  # [n]
    visible: Floats  # [n, S]: the embeddings in the space of the people
    centres: Floats  # [people, S], unit
    scale: Floats  # [n, 1]: length of the noise on a unit centre
    axes: Floats | None  # [S, 12]: a third of the noise lies in these directions
    blur: Floats | None  # [S]: blurry images drift to this direction
    source: Ints  # [n]: the image that an image is a frame of, else itself


def make(kind: str, n: int, level: str, dim: int, seed: int) -> tuple[Floats, Ints]:
    """Return unit embeddings [n, dim], in random order, and the person of each, of one of KINDS at a level of NOISE."""
    return plant(kind, n, level, dim, seed)[:2]


def plant(kind: str, n: int, level: str, dim: int, seed: int) -> Planted:
    """Return what `make` returns, with the truth behind it."""
    rng = np.random.default_rng([seed, KINDS.index(kind), list(NOISE).index(level), n, dim])
    labels = SIZES[kind](rng, n)
    space = 14 if kind == "low_dim" else dim
    centres = unit(normal(rng, labels.max() + 1, space))
    if kind == "low_rank":  # people differ in few directions; the noise has all
        centres = unit(normal(rng, len(centres), 14) @ np.linalg.qr(rng.normal(size=(dim, 14)))[0].astype(np.float32).T)
    if kind in ("twins", "everything"):  # a fifth of the people look like the one before them
        twin = 1 + 2 * np.flatnonzero(rng.random((len(centres) - 1) // 2) < 0.4)
        centres[twin] = unit(centres[twin - 1] + 0.55 * normal(rng, len(twin), space))
    noise = normal(rng, n, space)
    axes = blur = None
    if kind in ("anisotropic", "everything"):  # pose and light: a third of the noise in twelve shared axes
        axes = np.linalg.qr(rng.normal(size=(space, 12)))[0].astype(np.float32)
        noise = np.sqrt(2 / 3) * noise + np.sqrt(1 / 3 / 12) * rng.normal(size=(n, 12)).astype(np.float32) @ axes.T
    scale = np.full((n, 1), NOISE[level], np.float32)
    if kind in ("cone", "everything"):
        scale *= np.minimum(rng.lognormal(0, 0.3, (n, 1)), 2.5)
    x = unit(centres[labels] + scale * noise)
    source = np.arange(n, dtype=np.int32)
    if kind in ("bursts", "everything"):  # half of the images are frames of another image of the same person
        order = np.argsort(labels, kind="stable")
        before = np.maximum(np.arange(n) - rng.integers(1, 12, n), 0)
        frame = (rng.random(n) < 0.5) & (labels[order] == labels[order[before]])
        source[order[frame]] = order[before[frame]]
        x[order[frame]] = unit(x[order[before[frame]]] + 0.1 * normal(rng, int(frame.sum()), space))
    if kind in ("cone", "everything"):  # blurry images drift to one direction and show nobody in particular
        blurry = np.flatnonzero(rng.random(n) < 0.15)
        direction = unit(normal(rng, 1, space))
        x[blurry] = unit(direction + rng.uniform(0.4, 1.1, (len(blurry), 1)) * x[blurry])
        blur = direction[0]
    seen = x
    if space < dim:
        turn = np.linalg.qr(rng.normal(size=(dim, space)))[0].astype(np.float32)
        x = unit(x @ turn.T)
    shuffled = rng.permutation(n)
    images = np.ascontiguousarray(x[shuffled], np.float32)
    place = np.argsort(shuffled).astype(np.int32)
    return Planted(
        images, labels[shuffled], seen[shuffled], centres, scale[shuffled], axes, blur, place[source[shuffled]]
    )


def of_sizes(sizes: list[int], noise: float, dim: int, seed: int) -> tuple[Floats, Ints]:
    """Return unit embeddings [sum of sizes, dim], in random order, and the person of each: one person a size."""
    rng = np.random.default_rng([seed, len(sizes), max(sizes)])
    labels = rng.permutation(np.repeat(np.arange(len(sizes), dtype=np.int32), sizes))
    centres = unit(rng.normal(size=(len(sizes), dim)))
    return unit(centres[labels] + noise * unit(rng.normal(size=(len(labels), dim)))), labels
