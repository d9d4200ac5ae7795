"""Painting tools for faces: a square map, soft edges, hills, smooth noise.

Letters: T side of the map in pixels while painting, M side of the finished map.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

T = 192
M = 2 * T - 1  # twice as fine, so that a photograph can use the nearest pixel
REACH = 1.6  # the map covers [-REACH, REACH] in both directions: all of the front and a third of the back


@cache
def grid() -> tuple[Floats, Floats]:
    """Coordinates x [1, T] and y [T, 1] of the map's pixels."""
    line = np.linspace(-REACH, REACH, T, dtype=np.float32)
    return line[None, :], line[:, None]


@cache
def upsampling(size: int, points: int) -> Floats:
    """Weights [size, points] that interpolate evenly spaced points smoothly (cosine interpolation)."""
    place = np.linspace(0, points - 1, size)
    left = np.minimum(place.astype(int), points - 2)
    weight = 0.5 - 0.5 * np.cos(np.pi * (place - left))
    weights = np.zeros((size, points), np.float32)
    weights[np.arange(size), left] = 1 - weight
    weights[np.arange(size), left + 1] += weight
    return weights


def cloud(rng: np.random.Generator, size: int, points: int) -> Floats:
    """Smooth noise [size, size] in -1..1 with a mean near 0, from a grid of `points` x `points` random values."""
    weights = upsampling(size, points)
    return weights @ rng.uniform(-1, 1, (points, points)).astype(np.float32) @ weights.T


def strands(rng: np.random.Generator) -> Floats:
    """One line of smooth noise [1024] in -1..1 for hair, fine or coarse."""
    points = int(rng.choice([48, 80, 112, 144]))
    return upsampling(1024, points) @ rng.uniform(-1, 1, points).astype(np.float32)


def step(x: NDArray[Any], width: float) -> Floats:
    """0 below -width, 1 above width, linear in between."""
    return np.clip(x * np.float32(0.5 / width) + np.float32(0.5), 0, 1)


def tone(palette: NDArray[np.float64], place: float) -> NDArray[np.float64]:
    """Interpolate a palette at `place` in 0..1."""
    at = place * (len(palette) - 1)
    left = min(int(at), len(palette) - 2)
    return palette[left] + (at - left) * (palette[left + 1] - palette[left])


class Painter:
    """A map in progress: blend colours over it and add hills to its relief, each inside a window."""

    def __init__(self, base: Floats) -> None:
        self.colour = np.empty((4, T, T), np.float32)
        self.colour[:3] = base[:, None, None]
        self.colour[3] = 0.25
        self.height = np.zeros((T, T), np.float32)

    def window(self, x: float, y: float, reach_x: float, reach_y: float) -> tuple[tuple[slice, slice], Floats, Floats]:
        """The part of the map around (x, y), and the offsets from there: [1, w] and [h, 1]."""
        across, down = grid()
        scale, middle = (T - 1) / (2 * REACH), (T - 1) / 2

        def part(centre: float, reach: float) -> slice:
            return slice(max(0, int(middle + (centre - reach) * scale)), int(middle + (centre + reach) * scale) + 2)

        columns, rows = part(x, reach_x), part(y, reach_y)
        return (rows, columns), across[:, columns] - np.float32(x), down[rows] - np.float32(y)

    def lay(self, where: tuple[slice, slice], mask: Floats, colour: Any) -> None:
        part = self.colour[:3, where[0], where[1]]
        part += mask * (np.asarray(colour, np.float32)[:, None, None] - part)

    def gloss(self, where: tuple[slice, slice], mask: Floats, value: float) -> None:
        part = self.colour[3][where]
        part += mask * (np.float32(value) - part)

    def hill(self, x: float, y: float, wide: float, tall: float, height: float) -> None:
        where, dx, dy = self.window(x, y, 2.6 * wide, 2.6 * tall)
        self.height[where] += np.float32(height) * np.exp(-((dx / wide) ** 2)) * np.exp(-((dy / tall) ** 2))

    def spot(self, x: float, y: float, wide: float, tall: float, colour: Any, strength: float) -> None:
        """Paint a spot with soft edges."""
        where, dx, dy = self.window(x, y, 2.2 * wide, 2.2 * tall)
        self.lay(where, np.float32(strength) * np.exp(-((dx / wide) ** 2)) * np.exp(-((dy / tall) ** 2)), colour)

    def finished(self) -> NDArray[np.uint8]:
        """Return the map as bytes [M * M, 4]; new pixels are the mean of their neighbours."""
        colour = np.clip(self.colour, 0, 1) * np.float32(255)
        finer = np.empty((M, M, 4), np.uint8)
        rows = np.empty((M, T), np.float32)
        for channel, plane in enumerate(colour):
            rows[::2], rows[1::2] = plane, (plane[1:] + plane[:-1]) * np.float32(0.5)
            finer[:, ::2, channel] = rows
            finer[:, 1::2, channel] = (rows[:, 1:] + rows[:, :-1]) * np.float32(0.5)
        return finer.reshape(M * M, 4)
