"""The surroundings of a face, which change per photograph: background, things in front, the camera.

Letters: S side of the photograph. Pictures are planes, [3, S, S] in 0..1, until `camera` converts them to bytes.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.data.arrays import SIDE as S
from app.data.synthetic.paint import Floats, step, tone, upsampling
from app.data.synthetic.person import SKIN

BLURS, BLUR_SHARES = (
    (0, 1, 2, 4),
    (0.5, 0.75, 0.9),
)  # passes of a small blur; cumulative shares of the pictures


@cache
def grid() -> tuple[Floats, Floats]:
    """Coordinates x [1, S] and y [S, 1] of the photograph's pixels; it spans -1..1 in both directions."""
    line = ((np.arange(S) + 0.5) * (2 / S) - 1).astype(np.float32)
    return line[None, :], line[:, None]


def lay(picture: Floats, mask: Floats, colour: Any) -> None:
    """Blend a colour [3], or colours [3, ...], over the picture [3, ...] with the mask [...] as opacity."""
    colour = np.asarray(colour, np.float32)
    over = (colour.reshape(3, *[1] * mask.ndim) if colour.ndim == 1 else colour) - picture
    over *= mask
    picture += over


STUDIO = 0.45  # grey background of photographs without variation


def background(rng: np.random.Generator, variation: float) -> Floats:
    """Soft clouds of colour, often with one or two hard edges; less `variation` is closer to studio grey."""
    points, edges = rng.integers((2, 0), (7, 3))
    weights = upsampling(S, int(points))
    shape = rng.random(4)
    base = 0.08 + 0.84 * shape[0] + 0.3 * shape[1] * rng.uniform(-1, 1, 3)
    hills = rng.uniform(-1, 1, (1, points, points)) + rng.uniform(-0.5, 0.5, (3, points, points))
    colours = (base[:, None, None] + (0.05 + 0.25 * shape[2]) * hills).astype(np.float32)
    picture = weights @ colours @ weights.T
    across, down = grid()
    for _ in range(edges):
        shape = rng.random(7)
        cos, sin = np.float32(np.cos(np.pi * shape[0])), np.float32(np.sin(np.pi * shape[0]))
        cut = step(cos * across + sin * down + np.float32(0.9 - 1.8 * shape[1]), 0.03)
        cut *= np.float32(0.2 + 0.7 * shape[2])
        lay(picture, cut, 0.9 * shape[3] - 0.15 + 0.4 * shape[4:7])
    picture *= np.float32(variation)
    picture += np.float32(STUDIO * (1 - variation))
    return picture


def before(picture: Floats, rng: np.random.Generator, x: Floats, y: Floats, variation: float) -> None:
    """Sometimes draw a hand, a bar or a lock of hair in front. x, y [S, S]: coordinates of the upright head."""
    f = np.float32
    shape = rng.random(9)
    kind = shape[8]
    bar, hand, anything = 0.06 * variation, 0.11 * variation, 0.16 * variation
    if kind >= anything:
        return
    lean = (shape[0] - 0.5) * np.pi
    cos, sin = f(np.cos(lean)), f(np.sin(lean))
    along, aside = cos * x + sin * y, cos * y - sin * x
    aside -= f((0.3 + 0.5 * shape[1]) * (1 if shape[2] < 0.5 else -1))
    if kind < bar:
        lay(picture, step(f(0.06 + 0.1 * shape[3]) - np.abs(aside), 0.02), shape[4:7])
    elif kind < hand:  # three fingers that come from a side
        skin = (tone(SKIN, shape[4]) * (0.6 + 0.5 * shape[5])).astype(f)[:, None, None]
        for finger in range(3):
            off = aside - f(0.13 * (finger - 1))
            tip = f(0.5 * shape[6] - 0.3 - 0.08 * (finger != 1))
            inside = f(0.065) - np.hypot(np.maximum(along - tip, 0), off)
            lay(picture, step(inside, 0.015), skin * (f(0.7) + f(4) * np.clip(inside, 0, 0.075)))
    else:  # a lock of hair
        bend = aside - f(0.4) * along * along
        colour = shape[4] * np.array([0.5, 0.4, 0.3]) * (0.5 + shape[5])
        lay(picture, step(f(0.05 + 0.08 * shape[3]) - np.abs(bend), 0.03), colour)


def camera(picture: Floats, rng: np.random.Generator, variation: float) -> NDArray[np.uint8]:
    """Apply exposure, contrast, white balance, blur and noise; return uint8 [3, S, S]. Overwrites the picture."""
    f = np.float32
    contrast, exposure, noise, *balance = rng.standard_normal(6) * variation
    middle = float(picture[:, ::4, ::4].mean())
    gain = 255 * np.exp(0.16 * contrast + 0.05 * np.array(balance))
    # Shift the mean brightness towards the middle, as auto-exposure does.
    shift = 255 * (0.45 * middle + 0.24 + 0.07 * exposure) - middle * gain
    picture *= gain.astype(f)[:, None, None]
    picture += shift.astype(f)[:, None, None]
    for _ in range(BLURS[np.searchsorted(BLUR_SHARES, variation * rng.random(), side="right")]):
        for inner, left, right in (
            (np.s_[:, 1:-1], np.s_[:, :-2], np.s_[:, 2:]),
            (np.s_[..., 1:-1], np.s_[..., :-2], np.s_[..., 2:]),
        ):
            beside = picture[left] + picture[right]
            beside *= f(0.25)
            kept = picture[inner]
            kept *= f(0.5)
            kept += beside
    # The sum of two uniform numbers is close enough to normal; the same bytes at an offset serve as the second.
    size, later = picture.size, 1009
    drawn = np.frombuffer(rng.bytes(size + later), np.int8)
    grain = np.add(drawn[:size], drawn[later:], dtype=np.int16).reshape(picture.shape) * f(
        255 * 0.03 * abs(noise) / 104
    )
    picture += grain
    return np.clip(picture, 0, 255, out=picture).astype(np.uint8)
