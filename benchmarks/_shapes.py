"""Generate synthetic identities that are no round clouds. Seed 1 and even ones served to choose the method."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from benchmarks._planted import NOISE, Floats, Ints, unit

DIM, MOST = 256, 200  # numbers of an embedding; images of a person
Random = np.random.Generator
Rows = NDArray[np.float64]


def planted(kind: str, n: int, level: str, seed: int) -> tuple[Floats, Ints]:
    """Return at least `n` unit embeddings [*, DIM], in random order, and the person of each, of one of SHAPES."""
    random = np.random.default_rng([seed, list(SHAPES).index(kind), list(NOISE).index(level), n])
    sizes: list[int] = []
    while sum(sizes) < n:
        sizes.append(int(min(MOST, 1 + random.pareto(1.2) * 4)))
    labels = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    order = random.permutation(len(labels))
    return unit(SHAPES[kind](random, labels, NOISE[level])[order]), labels[order]


def directions(random: Random, count: int) -> Rows:
    """Return random unit vectors [count, DIM]."""
    rows = random.normal(size=(count, DIM))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def noise(random: Random, labels: Ints) -> Rows:
    """Return rows [n, DIM] of length about 1."""
    return random.normal(size=(len(labels), DIM)) / DIM**0.5


def clouds(random: Random, labels: Ints, level: float) -> Rows:
    """People who scatter unlike much."""
    scatter = level * np.exp(random.normal(0, 0.4, labels[-1] + 1))
    rows = directions(random, labels[-1] + 1)[labels] + scatter[labels, None] * noise(random, labels)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def offset(random: Random, labels: Ints, level: float) -> Rows:
    """All embeddings share an offset: strangers have a cosine of 0.8."""
    return 0.2**0.5 * clouds(random, labels, level) + 0.8**0.5 * directions(random, 1)


def drift(random: Random, labels: Ints, level: float) -> Rows:
    """All embeddings drift to one direction, some more than others."""
    share = random.beta(2, 3, (len(labels), 1))
    return (1 - share) ** 0.5 * clouds(random, labels, level) + share**0.5 * directions(random, 1)


def curve(random: Random, labels: Ints, level: float) -> Rows:
    """A person's images lie evenly along an arc of 115 degrees, in a direction of its own."""
    centre, side = directions(random, labels[-1] + 1), directions(random, labels[-1] + 1)
    angle = random.uniform(-1, 1, (len(labels), 1))
    return np.cos(angle) * centre[labels] + np.sin(angle) * side[labels] + 0.6 * level * noise(random, labels)


def pose(random: Random, labels: Ints, level: float) -> Rows:
    """The images of all people lie along the same two directions, as of pose and light."""
    place = random.uniform(-0.8, 0.8, (len(labels), 2))
    return (
        directions(random, labels[-1] + 1)[labels] + place @ directions(random, 2) + 0.8 * level * noise(random, labels)
    )


def modes(random: Random, labels: Ints, level: float) -> Rows:
    """Two fifths of a person's images differ from the others, as with and without glasses; nothing lies between."""
    centre, side = directions(random, labels[-1] + 1), directions(random, labels[-1] + 1)
    sign = np.where(random.random((len(labels), 1)) < 0.4, 1, -1)
    return centre[labels] + 0.55 * sign * side[labels] + 0.8 * level * noise(random, labels)


def groups(random: Random, labels: Ints, level: float) -> Rows:
    """Twelve groups of people have something in common, as of age and origin."""
    people = labels[-1] + 1
    common = directions(random, 12)[random.integers(0, 12, people)]
    centre = 0.35**0.5 * common + 0.65**0.5 * directions(random, people)
    return centre[labels] + level * noise(random, labels)


def tails(random: Random, labels: Ints, level: float) -> Rows:
    """Single numbers of an embedding are far off: noise of Student's t with three degrees of freedom."""
    far = random.standard_t(3, size=(len(labels), DIM)) / (3 * DIM) ** 0.5
    return directions(random, labels[-1] + 1)[labels] + 1.4 * level * far


def unlike(random: Random, labels: Ints, level: float) -> Rows:
    """The numbers of an embedding vary unlike much."""
    return clouds(random, labels, level) * np.exp(random.normal(0, 0.5, DIM))


def domains(random: Random, labels: Ints, level: float) -> Rows:
    """All images have one of two offsets, as in infrared and in colour; everybody has images of both."""
    return _in_domains(random, labels, level, 2)


def four_domains(random: Random, labels: Ints, level: float) -> Rows:
    """All images have one of four offsets."""
    return _in_domains(random, labels, level, 4)


def _in_domains(random: Random, labels: Ints, level: float, count: int) -> Rows:
    of_domain = directions(random, count)[random.integers(0, count, len(labels))]
    return 0.6 * of_domain + clouds(random, labels, level)


def wide(random: Random, labels: Ints, level: float) -> Rows:
    """Three numbers of an embedding vary much and tell nobody apart."""
    rows = clouds(random, labels, level)
    rows[:, :3] = 0.4 * random.normal(size=(len(labels), 3))
    return rows


def young(random: Random, labels: Ints, level: float) -> Rows:
    """A network of a few epochs: everything lies in 30 directions, and some of them have most of it."""
    people = random.normal(size=(labels[-1] + 1, 30)) * np.exp(-np.arange(30) / 10)
    images = random.normal(size=(len(labels), 30)) * np.exp(-np.arange(30) / 15)
    return (people[labels] + 0.35 * level * images) @ random.normal(size=(30, DIM))


def pose_twins(random: Random, labels: Ints, level: float) -> Rows:
    """As `pose`, and every second person looks like the one before."""
    place = random.uniform(-0.8, 0.8, (len(labels), 2))
    centre = _look_alikes(random, labels[-1] + 1, 0.55)
    return centre[labels] + place @ directions(random, 2) + 0.8 * level * noise(random, labels)


def curve_twins(random: Random, labels: Ints, level: float) -> Rows:
    """As `curve`, and every second person looks like the one before where the arcs meet."""
    side, angle = directions(random, labels[-1] + 1), random.uniform(-1, 1, (len(labels), 1))
    centre = _look_alikes(random, labels[-1] + 1, 0.6)
    return np.cos(angle) * centre[labels] + np.sin(angle) * side[labels] + 0.6 * level * noise(random, labels)


def converging(random: Random, labels: Ints, level: float) -> Rows:
    """As `curve`, but towards one of eight directions, as faces in profile resemble each other."""
    centre, side = directions(random, labels[-1] + 1), directions(random, 8)[random.integers(0, 8, labels[-1] + 1)]
    angle = random.uniform(-1, 1, (len(labels), 1))
    return np.cos(angle) * centre[labels] + np.sin(angle) * side[labels] + 0.6 * level * noise(random, labels)


def _look_alikes(random: Random, people: int, apart: float) -> Rows:
    centre = directions(random, people)
    centre[1::2] = centre[: people - people % 2 : 2] + apart * directions(random, people // 2)
    return centre / np.linalg.norm(centre, axis=1, keepdims=True)


SHAPES: dict[str, Callable[[Random, Ints, float], Rows]] = {
    "offset": offset,
    "drift": drift,
    "curve": curve,
    "pose": pose,
    "modes": modes,
    "groups": groups,
    "tails": tails,
    "unlike": unlike,
    "domains": domains,
    "four_domains": four_domains,
    "wide": wide,
    "young": young,
    "pose_twins": pose_twins,
    "curve_twins": curve_twins,
    "converging": converging,
}
