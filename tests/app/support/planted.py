"""Synthetic embeddings of known people, and their neighbours by brute force."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from app.config import NO_ID
from app.mining.lists import NONE

Lists = tuple[NDArray[np.int32], NDArray[np.float32]]


def unit(x: np.ndarray) -> NDArray[np.float32]:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def planted(sizes: list[int], dim: int, spread: float, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Shuffled unit vectors around a random centre per person, and the person of each."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes)).astype(np.int32)
    centres = rng.normal(size=(len(sizes), dim))
    return unit(centres[labels] + spread * rng.normal(size=(len(labels), dim))), labels


def blurred(rows: np.ndarray, share: float = 0.75) -> NDArray[np.float32]:
    """Rows [*, D] drifted to one direction, as embeddings of blurry images do; `share` of the original remains."""
    direction = unit(np.random.default_rng(0).normal(size=(1, rows.shape[1])))
    return unit(direction + share * rows)


def lists_of(bank: NDArray[np.float32], k: int = 20) -> Lists:
    """Ids and cosines [N, k] of the k nearest other rows of `bank` [N, D], for each row."""
    cosine = bank @ bank.T
    np.fill_diagonal(cosine, -np.inf)
    ids = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    cosine = np.take_along_axis(cosine, ids, 1)
    missing = k - ids.shape[1]
    ids = np.pad(np.where(np.isneginf(cosine), NONE, ids), ((0, 0), (0, missing)), constant_values=NONE)
    return ids.astype(np.int32), np.pad(cosine, ((0, 0), (0, missing)), constant_values=-np.inf)


def largest(found: NDArray[np.int64]) -> int:
    return int(np.unique(found[found != NO_ID], return_counts=True)[1].max(initial=0))
