"""Render one photograph of a person: pose, expression, light, glasses or mask are drawn anew for each.

person.py holds the stable traits, scenery.py the surroundings. Letters: S side of the photograph, n pixels of the head.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.data.synthetic.paint import REACH, Floats, M, T, step
from app.data.synthetic.person import Person
from app.data.synthetic.scenery import background, before, camera, grid, lay


def photograph(person: Person, rng: np.random.Generator, variation: float) -> NDArray[np.uint8]:
    """Return uint8 [3, S, S] RGB. `variation`, 0 to 1: how far it may differ from a plain frontal photograph."""
    picture = background(rng, variation)
    light = _Light(rng, variation)
    turns = np.array((0.30, 0.15, 0.08, 0.04, 0.04)) * variation
    yaw, pitch, roll, aside, lower = rng.standard_normal(5) * turns
    yaw, pitch = np.clip(yaw, -0.85, 0.85), np.clip(pitch, -0.5, 0.5)
    size = 1 / (1.3 + 0.1 * variation * rng.uniform(-1, 1))  # a close crop, as in sets of aligned faces
    across, down = grid()
    across, down = across - np.float32(aside), down - np.float32(lower)
    cos, sin = np.float32(size * np.cos(roll)), np.float32(size * np.sin(roll))
    x, y = cos * across + sin * down, cos * down - sin * across  # [S, S] along the upright head, its centre at 0
    _behind(picture, person, light, rng, x, y, yaw)
    _head(picture, person, light, rng, x, y, yaw, pitch, variation)
    before(picture, rng, x, y, variation)
    return camera(picture, rng, variation)


class _Light:
    """A lamp and ambient light."""

    def __init__(self, rng: np.random.Generator, variation: float) -> None:
        side, above, warm, cool = rng.standard_normal(4) * np.array((0.6, 0.3, 0.07, 0.04)) * variation
        above += 0.35
        self.towards = np.array(
            [np.sin(side) * np.cos(above), -np.sin(above), np.cos(side) * np.cos(above)], np.float32
        )
        lamp, around = np.array((0.6, 0.9)) + rng.uniform((-0.35, -0.1), (0.35, 0.1)) * variation
        self.lamp = (lamp * np.array([1 + warm, 1.0, 1 - warm])).astype(np.float32)
        self.around = ((around - 0.72 * lamp) * np.array([1 + cool, 1.0, 1 - cool])).astype(np.float32)
        self.flat = self.around + self.lamp * max(0.2, float(self.towards[2]))  # [3] on what faces the camera


def _behind(
    picture: Floats, person: Person, light: _Light, rng: np.random.Generator, x: Floats, y: Floats, yaw: float
) -> None:
    """Draw what is behind the face: hair around the head, neck, shoulders and ears."""
    f = np.float32
    a, b = person.half_width, person.half_height
    turned = x + f(0.10 * np.sin(yaw))
    cloth = rng.uniform(0.0, 0.95) + rng.uniform(-0.25, 0.25, 3)
    if person.hair_volume:
        wide, tall = a * person.hair_width + 0.3 * person.hair_volume, b + person.hair_volume
        low = b * (1.5 * person.hair_length - 0.1)
        far = (turned * f(1 / wide)) ** 2 + (np.minimum(y, 0) * f(1 / tall)) ** 2
        mask = step(1 - far, 0.06) * step(f(low) - y, 0.1)
        grain = person.strands.take(((turned + 2) * f(256)).astype(np.intp), mode="clip")
        grain = f(1) + f(0.3) * grain
        lay(picture, mask, (person.hair_colour * light.flat * f(0.7))[:, None, None] * grain)
    rows = _rows(y, 0.1, 9)
    xs, ys, under = x[rows], y[rows], picture[:, rows]
    neck = step(person.neck - np.abs(turned[rows] * f(0.5) + xs * f(0.5)), 0.03) * step(ys - f(0.2), 0.05)
    lay(under, neck, person.skin_colour * light.flat * f(0.55))
    lay(under, step(ys - f(0.92 * b + 0.16) - f(0.35) * xs * xs, 0.03), cloth * light.flat)
    ears: Any = 0.0
    rows = _rows(y, -0.35 * person.ears * b, 0.35 * person.ears * b)
    xs, ys = x[rows], (y[rows] - f(0.02)) ** 2
    for side in (-1, 1):
        middle = side * a * (np.cos(yaw) - 0.1 * side * np.sin(yaw))
        towards = side * np.sin(yaw)  # above 0: this ear faces the camera
        if towards > -0.35:
            wide, tall = 0.075 * person.ears + 0.05 * max(0.0, towards), 0.24 * person.ears * b
            ear = ((xs - f(middle)) * f(1 / wide)) ** 2 + ys * f(1 / tall**2)
            ears = np.maximum(ears, step(1 - ear, 0.15))
    lay(picture[:, rows], ears, person.skin_colour * light.flat * f(0.8))


def _rows(y: Floats, low: float, high: float) -> slice:
    """The rows of a picture in which y [S, S], a linear function of the pixel's position, can be within low..high."""
    left, right = y[:, 0], y[:, -1]
    found = np.flatnonzero((np.maximum(left, right) > low) & (np.minimum(left, right) < high))
    return slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, 0)


def _head(
    picture: Floats,
    person: Person,
    light: _Light,
    rng: np.random.Generator,
    x: Floats,
    y: Floats,
    yaw: float,
    pitch: float,
    variation: float,
) -> None:
    """Draw the painted map on a turned, lit ellipsoid; only its pixels [n] are computed."""
    f = np.float32
    y = y * f(1 / person.half_height)
    x = x * f(1 / person.half_width)
    shown = np.flatnonzero(x * x * f(0.75) + y * y < 1.05)
    x, y = x.ravel().take(shown), y.ravel().take(shown)
    x /= 1 + f(person.cheek) * np.exp(-(((y - f(0.2)) * 4) ** 2)) + f(person.jaw) * np.exp(-(((y - f(0.72)) * 3) ** 2))
    far = x * x + y * y
    mask = np.clip((1 - far) * f(14), 0, 1)
    z = np.sqrt(np.maximum(1 - far, f(1e-4)))
    # Rotate back to the upright head, then project onto the map.
    cos, sin = f(np.cos(pitch)), f(np.sin(pitch))
    my, mz = cos * y - sin * z, cos * z + sin * y
    cos, sin = f(np.cos(yaw)), f(np.sin(yaw))
    mx, mz = cos * x - sin * mz, cos * mz + sin * x
    spread = np.sqrt(2 / np.maximum(1 + mz, f(0.3)))
    mx *= spread
    my *= spread
    # Raised parts of the face shift more when the head turns.
    lift = person.height.take(nearest(mx, my, T))
    mx += f(np.sin(yaw)) * lift
    my += f(np.sin(pitch)) * lift
    mx, my, mouth, teeth = _expression(person, rng, mx, my, variation)
    skin = person.colour.take(nearest(mx, my, M), axis=0).T.astype(f, order="C")
    skin *= f(1 / 255)
    colour, gloss = skin[:3], skin[3]
    if mouth is not None:
        lay(colour, mouth, np.where(teeth, f(0.85), np.array([[0.22], [0.06], [0.07]], f)))
    _worn(colour, gloss, person, rng, mx, my, variation)
    slope = person.slope.take(nearest(mx, my, T), axis=1)
    lx, ly, lz = light.towards
    facing = lx * (x - f(1.1) * slope[0]) + ly * (y - f(1.1) * slope[1]) + lz * z
    lit = np.clip(facing + f(0.12), 0, 1.3)
    shine = lit * lit
    shine *= shine
    shine *= shine
    shine *= gloss * f(0.16)
    lit = lit * light.lamp[:, None]
    lit += light.around[:, None]
    colour *= lit
    colour += shine * light.lamp[:, None]
    colour *= f(0.72) + f(0.28) * np.minimum(z * f(2.2), 1)  # a dark rim where the surface turns away
    flat = picture.reshape(3, -1)
    under = flat.take(shown, axis=1)
    lay(under, mask, colour)
    for plane, values in zip(flat, under, strict=True):
        plane[shown] = values


def nearest(x: Floats, y: Floats, side: int) -> NDArray[np.intp]:
    """Indices of the nearest pixels, in a flattened map with `side` pixels per side, for map coordinates [n]."""
    scale, middle = np.float32((side - 1) / (2 * REACH)), np.float32(side / 2)
    column = np.clip(x * scale + middle, 0, side - 1).astype(np.int32)
    row = np.clip(y * scale + middle, 0, side - 1).astype(np.int32)
    return (row * side + column).astype(np.intp)


def _expression(person: Person, rng: np.random.Generator, x: Floats, y: Floats, variation: float) -> Any:
    """Warp map coordinates by smile, open mouth, lids, brows and gaze; return them with masks of mouth and teeth."""
    f = np.float32
    moved = rng.standard_normal(5) * np.array((0.45, 0.45, 0.2, 0.5, 0.5)) * variation
    smile, opened, lids, raised, gaze = moved + np.array((0.2, 0, 0.95, 0, 0))
    lids = np.clip(lids, 0.25, 1.15)
    # Brows and lids, both sides at once.
    ex = np.abs(x) - f(person.eye_x)
    ey = y - f(person.eye_y)
    near = np.exp(-(ex * ex * f(16)) - ey * ey * f(60))
    x = x + f(0.035 * gaze) * near
    y2 = y + near * ey * f(1 / lids - 1)
    y2 += f(0.05 * raised) * np.exp(-ex * ex * f(8) - ((y - f(person.brow_y)) * f(7)) ** 2)
    # The mouth.
    w = person.mouth_width
    dy = y - f(person.mouth_y)
    near = np.exp(-(((x * f(0.75 / w)) ** 2) ** 2) - (dy * f(4.2)) ** 2)
    bent = (x * f(1 / w)) ** 2
    x = x - x * near * f(0.16 * smile)
    y2 += near * f(0.055 * smile) * (bent - f(0.25))
    inside = teeth = None
    if opened > 0.1:
        gap = f(0.16 * min(opened, 1.2)) * np.sqrt(np.clip(1 - bent * f(1.2), 0, 1))
        dy = y2 - f(person.mouth_y)
        above, below = f(0.3) * gap, f(0.7) * gap
        inside = np.clip(np.minimum(dy + above, below - dy) * f(60), 0, 1)
        teeth = dy < above * f(-0.1) if smile > 0.1 else np.zeros_like(dy, bool)
        fade = np.exp(-(((np.maximum(np.abs(dy) - gap, 0)) * f(5)) ** 2))
        y2 = y2 + fade * np.where(dy < 0, np.minimum(above, -dy), -np.minimum(below, dy))
    return x, y2, inside, teeth


def _worn(
    colour: Floats, gloss: Floats, person: Person, rng: np.random.Generator, x: Floats, y: Floats, variation: float
) -> None:
    """Draw glasses, sunglasses or a mask on the skin, so that they turn with the head."""
    f = np.float32
    shape = rng.random(9)
    kind = shape[8]
    glasses, mask_too = 0.16 * variation, 0.24 * variation
    if kind < glasses:
        dark = kind < glasses / 4
        ex, ey = np.abs(x) - f(person.eye_x + 0.02), y - f(person.eye_y + 0.03)
        wide, tall = 0.27 + 0.06 * shape[0], 0.17 + 0.08 * shape[1]
        square = (ex / f(wide)) ** 2, (ey / f(tall)) ** 2
        ring = square[0] + square[1] if shape[2] < 0.5 else np.sqrt(square[0] ** 2 + square[1] ** 2)
        frame = step(f(0.10 + 0.08 * shape[3]) - np.abs(ring - 1), 0.08)
        bridge = step(f(0.022) - np.abs(ey + f(0.04)), 0.015) * (ring > 1)
        tint = shape[4:7] * shape[7] * 0.6
        lay(colour, np.maximum(frame, bridge), tint)
        if dark:
            lay(colour, step(1 - ring, 0.08) * f(0.93), tint * 0.3 + 0.03)
            gloss += step(1 - ring, 0.08)
    elif kind < mask_too:
        top = person.nose_y - 0.12 + 0.1 * shape[0]
        mask = step(y - f(top) - f(0.12) * x * x, 0.02) * step(f(1.05) - np.abs(x), 0.02)
        folds = 1 - f(0.12) * np.abs(np.sin((y - f(top)) * f(9)))
        lay(colour, mask, (0.25 + 0.75 * shape[4:7]).astype(f)[:, None] * folds)
        gloss *= 1 - f(0.7) * mask
