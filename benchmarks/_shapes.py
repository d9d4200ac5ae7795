"""Generate synthetic identities that are no round clouds around a centre. Seeds 1 and 2 served to choose the method."""

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


SHAPES: dict[str, Callable[[Random, Ints, float], Rows]] = {
    "offset": offset,
    "drift": drift,
    "curve": curve,
    "pose": pose,
    "modes": modes,
    "groups": groups,
    "tails": tails,
    "unlike": unlike,
}
