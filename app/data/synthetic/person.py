"""A synthetic person: stable traits drawn from a seed, painted once as the skin of a head.

The skin is a map of the unit sphere in Lambert's azimuthal equal-area projection; the tip of the nose is near the
middle. A point (x, y, z) lies at (x, y) * sqrt(2 / (1 + z)), x to the right, y down, z towards the camera. So a turned
head (portrait.py) shows the parts of the map that a camera would see.

Letters: T side of the map in pixels while painting, M side of the finished map (paint.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.data.synthetic.paint import REACH, Floats, Painter, T, cloud, grid, step, strands, tone, upsampling

# From light to dark, from yellow to red, linear between them; sRGB 0..1.
SKIN = np.array([[0.98, 0.86, 0.77], [0.92, 0.74, 0.60], [0.80, 0.60, 0.44], [0.58, 0.39, 0.27], [0.34, 0.22, 0.16]])
HAIR = np.array(
    [[0.07, 0.06, 0.07], [0.17, 0.11, 0.08], [0.33, 0.20, 0.11], [0.52, 0.36, 0.20], [0.82, 0.66, 0.38],
     [0.60, 0.24, 0.09], [0.62, 0.61, 0.60]]
)  # fmt: skip
IRIS = np.array([[0.22, 0.13, 0.07], [0.40, 0.25, 0.10], [0.33, 0.42, 0.20], [0.28, 0.48, 0.65], [0.45, 0.50, 0.52]])


@dataclass(frozen=True)
class Person:
    """Traits that all photographs of a person share. Lengths are in half widths or half heights of the head."""

    half_width: float  # of the head, in half sides of the picture
    half_height: float
    jaw: float  # how much wider (or narrower) than an ellipse the head is at the jaw
    cheek: float  # the same at the cheekbones
    neck: float
    ears: float
    skin_colour: Floats  # [3] in 0..1, as all colours
    hair_colour: Floats
    hair_volume: float  # how far hair stands off the head; 0: none
    hair_length: float  # how far down it hangs, 0 at the ears, 1 at the shoulders
    hair_width: float
    strands: Floats  # [1024] brightness pattern of the hair behind the head
    eye_x: float
    eye_y: float
    brow_y: float
    mouth_y: float
    mouth_width: float
    nose_y: float
    colour: NDArray[np.uint8]  # [M * M, 4] the painted map: red, green, blue, gloss; 255 is 1
    height: Floats  # [T * T] of the relief
    slope: Floats  # [2, T * T] of the relief, along x and along y


def draw_person(rng: np.random.Generator) -> Person:
    """Draw the traits and paint the map from one stream of random numbers."""
    between = rng.uniform
    skin = tone(SKIN, between(0, 1)) * between(0.96, 1.04, 3)
    hair = HAIR[rng.integers(len(HAIR))] * between(0.8, 1.2) + between(-0.02, 0.02, 3)
    if rng.random() < 0.7 and skin.mean() < 0.5:  # mostly dark hair on dark skin
        hair = HAIR[0] * between(0.8, 1.6)
    red = between(0, 1)
    lips = skin * (1 - 0.25 * red) + np.array([0.62, 0.16, 0.20]) * 0.42 * red - 0.05
    eye_x, eye_y, eye_w = between(0.34, 0.49), between(-0.13, 0.05), between(0.135, 0.205)
    eye_h, slant = eye_w * between(0.34, 0.62), between(-0.18, 0.28)
    brow_y = eye_y - between(0.17, 0.29)
    nose_y, nose_w, nose_h = between(0.22, 0.38), between(0.11, 0.23), between(0.7, 1.3)
    mouth_y = nose_y + between(0.23, 0.33)
    mouth_w, upper, lower = between(0.22, 0.38), between(0.03, 0.075), between(0.04, 0.11)
    bald = rng.random() < 0.07

    paint = Painter(skin.astype(np.float32))
    paint.colour[:3] *= 1 + 0.035 * cloud(rng, T, 12) + 0.03 * cloud(rng, T, 5)

    # Warm cheeks and nose; eye sockets; the relief that the light shades.
    blush, warm = between(0.05, 0.4), skin * [1.02, 0.78, 0.76]
    for side in (-1, 1):
        paint.spot(side * 0.52, 0.28, 0.26, 0.2, warm, blush)
        paint.spot(side * eye_x, eye_y + 0.02, 1.6 * eye_w, 0.17, skin * [0.82, 0.74, 0.74], between(0.15, 0.45))
        paint.hill(side * eye_x, eye_y, 0.2, 0.13, -0.055 * between(0.6, 1.4))
        paint.hill(side * eye_x, brow_y + 0.02, 0.24, 0.07, 0.05)
    cheek_y, cheek_h = between(0.16, 0.34), between(0.02, 0.07)
    for side in (-1, 1):
        paint.hill(side * 0.58, cheek_y, 0.2, 0.15, cheek_h)
        paint.hill(side * 0.33, mouth_y - 0.12, 0.05, 0.16, -0.018 * between(0, 1.6))  # from nose to mouth
    paint.spot(0, nose_y, nose_w, 0.12, warm, blush)
    paint.hill(0, (nose_y + eye_y) / 2, between(0.06, 0.1), 0.24, 0.10 * nose_h)
    paint.hill(0, nose_y - 0.02, between(0.08, 0.12) + 0.2 * nose_w, 0.09, 0.13 * nose_h)
    for side in (-1, 1):
        paint.hill(side * nose_w * 0.8, nose_y + 0.015, 0.05, 0.05, 0.05)
    paint.hill(0, mouth_y + 0.27, between(0.12, 0.25), 0.11, between(0.02, 0.08))
    paint.hill(0, mouth_y, mouth_w, 0.1, 0.04)

    _marks(paint, rng, skin)
    _beard(paint, rng, hair, mouth_y, mouth_w, nose_y)
    _nose(paint, skin, nose_y, nose_w)
    _mouth(paint, rng, lips, mouth_y, mouth_w, upper, lower)
    thick, arch, lean, brow_dark = between(0.022, 0.06), between(0.2, 1.6), between(-0.25, 0.3), between(0.45, 0.95)
    brow_w, iris = between(0.19, 0.28), tone(IRIS, between(0, 1)) * between(0.8, 1.25)
    for side in (-1, 1):
        _eye(paint, side, eye_x, eye_y, eye_w, eye_h, slant, iris, skin)
        where, dx, dy = paint.window(side * (eye_x + 0.02), brow_y, brow_w + 0.06, 0.2)
        dx = dx * np.float32(side)
        bend = dy + np.float32(lean) * dx * np.float32(0.35) + np.float32(arch) * (np.float32(0.02) - dx * dx)
        thin = np.float32(thick) * np.clip(1.15 - (dx / brow_w + 0.35) ** 2, 0.02, 1)
        mask = step(thin - np.abs(bend), 0.018) * step(brow_w - np.abs(dx), 0.03) * np.float32(brow_dark)
        paint.lay(where, mask, hair * 0.75)
    hairline = between(-0.86, -0.42) if not bald else -1.3
    _hair(paint, rng, hair, hairline, bald)
    slope = np.stack(np.gradient(paint.height, 2 * REACH / (T - 1))[::-1])
    return Person(
        half_width=between(0.56, 0.67),
        half_height=between(0.75, 0.86),
        jaw=between(-0.16, 0.12),
        cheek=between(-0.03, 0.07),
        neck=between(0.26, 0.42),
        ears=between(0.6, 1.3),
        skin_colour=skin.astype(np.float32),
        hair_colour=hair.astype(np.float32),
        hair_volume=0.0 if bald else between(0.04, 0.2),
        hair_length=0.0 if bald else float(rng.choice([0.0, 0.0, between(0.2, 1.0)])),
        hair_width=between(1.04, 1.22),
        strands=strands(rng),
        eye_x=eye_x,
        eye_y=eye_y,
        brow_y=brow_y,
        mouth_y=mouth_y,
        mouth_width=mouth_w,
        nose_y=nose_y,
        colour=paint.finished(),
        height=paint.height.reshape(T * T),
        slope=slope.reshape(2, T * T).astype(np.float32),
    )


def _eye(paint: Painter, side: int, x: float, y: float, w: float, h: float, slant: float, iris: Any, skin: Any) -> None:
    """Paint the white, iris, pupil, lids and crease of one eye; `side` -1 is left in the picture."""
    where, dx, dy = paint.window(side * x, y, 1.7 * w, 3.4 * h + 0.03)
    dx, dy = dx * np.float32(side), dy + np.float32(slant) * dx
    along = np.clip(1 - (dx / w) ** 2, 0, 1)
    open_above, open_below = h * np.sqrt(along), 0.7 * h * along
    upper, lower = dy + open_above, open_below - dy  # both positive inside the eye
    inside = step(np.minimum(upper, lower), 0.012) * step(w - np.abs(dx), 0.01)
    paint.lay(where, inside, [0.90, 0.88, 0.86])
    paint.gloss(where, inside, 1.0)
    paint.lay(where, inside * step(0.03 - upper, 0.03) * np.float32(0.5), [0.35, 0.3, 0.3])  # the lid's shadow
    round_ = np.sqrt(dx * dx + dy * dy)
    radius = 0.62 * h + 0.045
    paint.lay(where, inside * step(radius - round_, 0.012), iris * np.float32(0.55))
    paint.lay(where, inside * step(0.82 * radius - round_, 0.015), iris)
    paint.lay(where, inside * step(0.42 * radius - round_, 0.012), [0.03, 0.03, 0.04])
    near = step(1.08 * w - np.abs(dx), 0.02)
    paint.lay(where, near * step(0.016 - np.abs(upper), 0.012) * np.float32(0.85), skin * 0.25)
    paint.lay(where, near * step(0.008 - np.abs(lower), 0.012) * np.float32(0.4), skin * 0.5)
    crease = np.abs(dy + 1.35 * open_above + 0.02)
    paint.lay(where, near * step(0.008 - crease, 0.014) * np.float32(0.45), skin * 0.6)


def _nose(paint: Painter, skin: Any, y: float, w: float) -> None:
    for side in (-1, 1):
        paint.spot(side * w * 0.5, y + 0.055, 0.035 + 0.12 * w, 0.022, skin * 0.3, 0.75)
        paint.spot(side * w, y + 0.01, 0.022, 0.055, skin * 0.62, 0.5)
    paint.spot(0, y + 0.085, 0.8 * w, 0.03, skin * 0.66, 0.4)


def _mouth(paint: Painter, rng: np.random.Generator, lips: Any, y: float, w: float, upper: float, lower: float) -> None:
    where, dx, dy = paint.window(0, y, 1.3 * w, 0.2)
    along = np.clip(1 - (dx / w) ** 2, 0, 1)
    bow = 1 - rng.uniform(0.1, 0.5) * np.exp(-((dx / 0.05) ** 2))
    sag = dy - np.float32(rng.uniform(-0.12, 0.14)) * (dx * dx) / w  # corners up or down
    mask_up = step(sag + upper * np.sqrt(along) * bow, 0.012) * step(-sag, 0.01)
    mask_low = step(lower * np.sqrt(along) - sag, 0.014) * step(sag, 0.01)
    edge = step(w - np.abs(dx), 0.015)
    paint.lay(where, mask_up * edge * np.float32(0.9), lips * 0.88)
    paint.lay(where, mask_low * edge * np.float32(0.9), lips)
    paint.gloss(where, mask_low * edge, 0.7)
    paint.lay(where, edge * step(0.010 - np.abs(sag), 0.010) * np.float32(0.85), lips * 0.35)
    paint.spot(0, y + lower + 0.05, 0.6 * w, 0.03, lips * 0.6, 0.25)


def _marks(paint: Painter, rng: np.random.Generator, skin: Any) -> None:
    """Paint freckles, moles and a scar, which distinguish people with similar features."""
    if rng.random() < 0.3:
        dark, spread = skin * [0.74, 0.62, 0.54], rng.uniform(0.25, 0.5)
        for _ in range(rng.integers(25, 60)):
            size = rng.uniform(0.010, 0.022)
            paint.spot(rng.normal(0, spread), rng.normal(0.16, 0.13), size, size, dark, rng.uniform(0.3, 0.8))
    for _ in range(rng.integers(0, 4)):
        size = rng.uniform(0.016, 0.032)
        paint.spot(rng.uniform(-0.7, 0.7), rng.uniform(-0.4, 0.85), size, size, skin * 0.35, 0.9)
    if rng.random() < 0.12:
        where, dx, dy = paint.window(rng.choice([-1, 1]) * rng.uniform(0.2, 0.65), rng.uniform(-0.4, 0.7), 0.25, 0.25)
        lean = rng.uniform(-1.2, 1.2)
        cos, sin = np.float32(np.cos(lean)), np.float32(np.sin(lean))
        mask = step(0.014 - np.abs(cos * dx + sin * dy), 0.014) * step(0.17 - np.abs(cos * dy - sin * dx), 0.05)
        paint.lay(where, mask * np.float32(0.7), skin * [1.1, 0.85, 0.85] + 0.05)


def _beard(paint: Painter, rng: np.random.Generator, hair: Any, mouth_y: float, mouth_w: float, nose_y: float) -> None:
    kind = rng.choice(["none", "stubble", "full", "goatee", "moustache"], p=[0.66, 0.12, 0.1, 0.06, 0.06])
    thick, grain = rng.uniform(0.5, 0.95), 0.8 + 0.35 * cloud(rng, T, 64)
    if kind == "none":
        return
    across, down = grid()
    beside = np.abs(across)
    under_nose = step(down - np.float32(nose_y + 0.09), 0.03)
    if kind == "moustache":
        mask = step(np.float32(mouth_w * 1.05) - beside, 0.05) * step(np.float32(mouth_y) - down, 0.03)
    elif kind == "goatee":
        mask = step(np.float32(mouth_w * 1.15) - beside, 0.06)
    else:
        line = nose_y + 0.12 + rng.uniform(0.0, 0.12) - 0.55 * np.clip(beside - 0.45, 0, 1)
        mask = step(down - line, 0.07)
        under_nose = np.maximum(under_nose, step(beside - np.float32(0.5), 0.05))
        thick = 0.3 * thick if kind == "stubble" else thick
    where = (slice(None), slice(None))
    paint.lay(where, mask * under_nose * np.float32(thick) * np.clip(grain, 0, 1), hair * 0.85)


def _hair(paint: Painter, rng: np.random.Generator, hair: Any, hairline: float, bald: bool) -> None:
    """Paint hair in strands, above the hairline and beside the face down to the ears."""
    across, down = grid()
    beside = np.abs(across)
    side, fall, corner = rng.uniform(0.84, 1.02), rng.uniform(0.1, 0.45), rng.uniform(3, 9)
    peak, part, sweep = rng.uniform(-0.06, 0.12), rng.uniform(-0.45, 0.45), rng.uniform(-0.22, 0.22)
    ragged, points = rng.uniform(0.01, 0.09), int(rng.integers(8, 40))
    edge = upsampling(T, points) @ rng.uniform(-ragged, ragged, points).astype(np.float32)
    line = hairline + peak * np.exp(-((across / 0.16) ** 2)) + sweep * np.tanh((across - part) * 4)
    line = line + (fall - hairline) * np.minimum(beside / side, 1.15) ** corner + edge[None]
    mask = step(line.astype(np.float32) - down, 0.03)
    wave = across / (down + 2.4) + np.float32(rng.uniform(0, 0.03)) * np.sin(down * np.float32(rng.uniform(4, 12)))
    grain = strands(rng)[np.clip((wave + 2) * 256, 0, 1023).astype(np.int32)]
    light = 1 + np.float32(rng.uniform(0.12, 0.4)) * grain + np.float32(0.25) * np.exp(-(((down + 0.95) / 0.18) ** 2))
    skin = paint.colour[:3]
    skin += mask * np.float32(0.35 if bald else 0.97) * (hair.astype(np.float32)[:, None, None] * light - skin)
    paint.gloss((slice(None), slice(None)), mask, 0.4)
