"""A direction that images of different people share is found and removed; that of a person stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from app.config import NO_ID, MiningConfig
from app.mining.cluster import Clusters
from app.mining.clustered import clustered
from app.mining.gate import Report, pair_f
from app.mining.pseudo_ids import common_direction, find_pseudo_ids, without_shared_directions
from app.mining.shared_direction import (
    LIE_ALONG,
    NEVER,
    Facts,
    Shared,
    is_common,
    reaches,
    resembles_strangers,
    shared_direction,
    stands_out,
    variance_along,
    without,
)
from app.runtime.dist import World
from app.runtime.stop import undisturbed
from benchmarks._planted import plant
from tests.app.support.planted import blurred, planted, unit

Found = tuple[NDArray[np.int64], Report]


def find(bank: NDArray[np.float32], labels: NDArray[np.int32]) -> Found:
    alone = World(0, 1, torch.device("cpu"))
    nothing = np.full(len(bank), NO_ID, np.int64)
    return find_pseudo_ids(torch.from_numpy(bank), nothing, labels, MiningConfig(), alone, seed=0)


def of_cluster(outside: float, *, images: float = 0.15, variance: float = 0.004, size: int = 500) -> Facts:
    return Facts(size=size, looked_at=min(size, 256), outside=outside, images=images, variance=variance)


PEOPLE = [of_cluster(outside, size=40) for outside in (0.02, 0.05, 0.05, 0.08, 0.10, 0.15)]
SMALL = [of_cluster(outside, size=20) for outside in (0.20, 0.25, 0.25, 0.30, 0.30, 0.35)]
PIECES = [of_cluster(outside) for outside in (0.05, 0.20, 0.30, 0.30, 0.40, 0.50)]


@pytest.mark.parametrize(
    ("facts", "people", "others", "shared"),
    [
        (of_cluster(1.00), PEOPLE, 0.99, True),  # a cone
        (of_cluster(0.20), PEOPLE, 0.99, True),  # a cone; few of its people have another image
        (of_cluster(0.07), PEOPLE, 0.99, False),  # a person
        (of_cluster(0.20, size=33), PEOPLE, 0.99, False),  # of few images the share is not sure
        (of_cluster(0.40), PIECES, 0.99, False),  # other clusters measure as much
        (of_cluster(0.32), SMALL, 0.99, False),  # so do small ones, where the same share is less sure
        (of_cluster(0.60), PIECES, 0.99, True),  # nearly as many as have a neighbour at all
        (of_cluster(0.40), [], 0.99, False),  # nothing to compare with
        (of_cluster(0.38), [], 0.46, True),  # most images have no neighbour
        (of_cluster(float("nan")), PEOPLE, 0.99, False),
        (of_cluster(0.20), [*PEOPLE, of_cluster(float("nan"))], 0.99, False),
    ],
)
def test_a_cluster_shows_no_person_if_more_of_its_images_resemble_strangers_than_those_of_people(
    facts: Facts, people: list[Facts], others: float, *, shared: bool
) -> None:
    assert (stands_out(facts, people, 0.05) or resembles_strangers(facts, 0.05, others)) == shared


def test_a_cluster_that_measures_as_all_others_is_only_a_hint() -> None:
    facts = of_cluster(0.60)
    assert resembles_strangers(facts, 0.05, 0.99)
    assert not stands_out(facts, [of_cluster(share) for share in (0.50, 0.55, 0.60, 0.60, 0.65)], 0.05)
    assert not stands_out(facts, [], 0.05)


@pytest.mark.parametrize(
    ("images", "variance", "pays"),
    [(0.15, 0.004, True), (0.02, 0.07, False), (0.15, float("nan"), False), (float("nan"), 0.004, False)],
)
def test_a_direction_pays_if_more_images_lie_along_it_than_people_differ_by(
    images: float, variance: float, *, pays: bool
) -> None:
    assert of_cluster(1.00, images=images, variance=variance).pays == pays


@pytest.mark.parametrize("count", [0, 1, 5, 70_000])
def test_what_is_left_has_length_1_and_no_part_along_the_direction_whatever_the_number_of_rows(count: int) -> None:
    rows = torch.from_numpy(unit(np.random.default_rng(0).normal(size=(count, 16))))
    direction = torch.nn.functional.normalize(torch.arange(1.0, 17.0), dim=0)
    left = without(rows, direction)
    assert left.shape == rows.shape
    assert (left @ direction).abs().sum() <= 1e-5 * count
    torch.testing.assert_close(torch.linalg.vector_norm(left, dim=1), torch.ones(count), atol=1e-5, rtol=0)
    assert torch.equal(left[:3], without(rows[:3], direction))


def test_a_row_along_the_direction_and_a_row_without_one_become_zero() -> None:
    direction = torch.nn.functional.normalize(torch.arange(1.0, 17.0), dim=0)
    left = without(torch.stack([direction, -direction, torch.zeros(16)]), direction)
    assert torch.equal(left, torch.zeros(3, 16))
    assert without(torch.full((1, 16), torch.nan), direction).isnan().all()


@pytest.mark.parametrize("spread", [1e-4, 0.1])
def test_a_row_reaches_its_own_limit_or_not_as_in_64_bits(spread: float) -> None:
    """16 bits resolve the greater differences only."""
    random = np.random.default_rng(0)
    bank, rows = (torch.from_numpy(unit(random.normal(size=(count, 64)))) for count in (20_000, 90))
    of = torch.arange(90) % 3
    best = (rows.double() @ bank.double().T).amax(1)
    least = torch.full((len(bank), 3), NEVER)
    bank[-5:], least[-5:] = torch.nan, torch.nan
    nearest = (rows @ bank.nan_to_num().T).argmax(1)
    for row, at in enumerate(nearest):
        least[at] = NEVER
        least[at, of[row]] = float(best[row]) + spread * (row % 2 * 2 - 1)
    allowed = torch.stack([least[at, of[row]] - best[row] for row, at in enumerate(nearest)]).abs() <= spread * 1.01
    reached = reaches(rows, of, bank, least, World(0, 1, torch.device("cpu")))
    assert allowed.sum() > 80  # the others share their nearest row
    assert torch.equal(reached[allowed], (torch.arange(90) % 2 == 0)[allowed])


def test_variance_along_a_direction_is_that_of_most_images() -> None:
    rows = unit(np.random.default_rng(0).normal(size=(500, 16)))
    first = torch.eye(16)[0]
    assert variance_along(first, torch.from_numpy(rows)) == pytest.approx(1 / 16, rel=0.25)
    rows[:50] = np.eye(16)[0]
    assert variance_along(first, torch.from_numpy(rows)) < 2 / 16
    assert variance_along(first, torch.from_numpy(rows[:50])) == 1.0  # all equal
    assert variance_along(first, torch.empty(0, 16)) == 1.0


def test_blurry_images_join_their_people_in_place_of_each_other() -> None:
    bank, labels = planted([25] * 30, 128, 0.7)
    bank[:120] = blurred(bank[:120])
    found, report = find(bank, labels)
    assert report.shared == 1
    assert report.largest <= 30
    assert pair_f(found, labels) > 0.97
    assert pair_f(found[:120], labels[:120]) > 0.9


@pytest.mark.parametrize(("sizes", "dim"), [([150] * 3 + [10] * 40, 128), ([40] * 25, 12)])
def test_the_direction_of_a_person_stays(sizes: list[int], dim: int) -> None:
    bank, labels = planted(sizes, dim, 0.4)
    found, report = find(bank, labels)
    assert report.shared == 0
    assert pair_f(found, labels) > 0.9


def test_blurry_images_are_no_cluster_where_most_of_their_people_have_no_other_image() -> None:
    sharp, people = planted([20] * 20 + [3] * 100, 128, 0.7)
    alone, _ = planted([1] * 80, 128, 0.7, seed=1)
    bank = np.concatenate([sharp, blurred(np.concatenate([sharp[:40], alone]))])
    labels = np.concatenate([people, people[:40], 1000 + np.arange(80, dtype=np.int32)])
    found, report = find(bank, labels)
    assert report.shared == 1
    assert report.largest <= 30
    assert pair_f(found, labels) > 0.9


def test_blurry_images_go_to_their_people_where_others_differ_by_more_than_chance() -> None:
    """Other clusters resemble strangers, too, so it is only a hint; and fewer images have a neighbour without it."""
    truth = plant("everything", 2000, "medium", 256, 21)
    found, report = find(truth.images, truth.labels)
    assert report.largest < 200
    assert pair_f(found, truth.labels) > 0.85
    alone, config = World(0, 1, torch.device("cpu")), MiningConfig()
    of = clustered(torch.from_numpy(truth.images), config, alone, seed=0, poll=undisturbed)
    assert without_shared_directions(of, config, alone, 0, undisturbed)[1] == 1


def test_a_direction_is_found_by_a_cluster_that_is_one_above_the_second_floor_only() -> None:
    alone, config = World(0, 1, torch.device("cpu")), MiningConfig()
    truth = plant("cone", 2000, "medium", 256, 2)
    of = clustered(torch.from_numpy(truth.images), config, alone, seed=0, poll=undisturbed)
    pieces = Clusters(np.arange(2000), np.zeros(2000, np.bool_))
    assert truth.blur is not None
    for strict, likely in ((of.strict, of.strict), (pieces, of.strict)):
        shared = common_direction(of._replace(strict=strict, likely=likely), config, alone, undisturbed)
        assert shared is not None
        assert float(shared.direction @ torch.from_numpy(truth.blur)) > 0.9
    assert common_direction(of._replace(strict=pieces, likely=pieces), config, alone, undisturbed) is None


PEOPLE_APART = [0] * 20 + [1] * 20  # clusters of the images outside
FEW_TOGETHER = [*range(100, 130), *[2] * 10]  # most of the images outside are alone


@pytest.mark.parametrize(
    ("inside", "outside", "went"),
    [
        ([0] * 10 + [1] * 10, PEOPLE_APART, True),
        ([0] * 6 + [1] * 5 + list(range(50, 59)), PEOPLE_APART, True),  # more than half of them
        ([0] * 9 + list(range(50, 61)), PEOPLE_APART, False),  # fewer
        (list(range(50, 70)), PEOPLE_APART, False),  # each is alone
        ([5] * 20, PEOPLE_APART, False),  # they stay together
        ([2] * 3 + list(range(50, 67)), FEW_TOGETHER, True),  # as often as the others
        ([2] * 2 + list(range(50, 68)), FEW_TOGETHER, False),
        ([7, 8, 9], [7, 8, 9], False),  # two strangers may be near by chance
        ([7, 8, 9], [7, 7, 8, 8, 9, 9], True),
        ([0, 1, 2], [], False),
    ],
)
def test_a_direction_is_shared_if_its_images_are_in_clusters_with_others_without_it(
    inside: list[int], outside: list[int], went: bool
) -> None:
    """Copies take no part: here one image has 30, which are in its cluster."""
    copies = [inside[-1]] * 30
    labels = np.array([*inside, *outside, *copies])
    place = np.repeat([0, 1, 2], [len(inside), len(outside), len(copies)])
    shared = Shared(torch.eye(4)[0], sure=False, inside=place == 0, outside=place == 1)
    assert shared.went_to_others(labels) is went


def test_the_direction_of_a_person_stays_though_more_images_have_a_neighbour_without_it() -> None:
    """This happens where images differ along few directions, by a few images of 10,000."""
    truth = plant("low_rank", 10_000, "medium", 256, 7)
    _, report = find(truth.images, truth.labels)
    assert report.shared == 0


@pytest.mark.parametrize("images", [3, 5])
def test_a_direction_along_which_all_images_drift_is_removed_where_people_have_few_images(images: int) -> None:
    bank, labels = planted([images] * 200, 128, 0.7)
    random = np.random.default_rng(2)
    drift, direction = random.beta(1.3, 2, (len(bank), 1)), unit(random.normal(size=(1, 128)))
    found, report = find(unit((1 - drift) ** 0.5 * bank + drift**0.5 * direction), labels)
    assert report.shared == 1
    assert pair_f(found, labels) > 0.6


def test_a_person_stays_where_a_part_is_in_another_cluster() -> None:
    """Half of the images of one person show glasses, and 30 of these are apart."""
    bank, person = planted([150] + [12] * 60, 128, 0.7)
    random = np.random.default_rng(0)
    own = np.flatnonzero(person == 0)
    bank[own[:75]] = unit(bank[own[:75]] + 0.7 * unit(random.normal(size=(1, 128))))
    labels = person.astype(np.int64)
    labels[own[:30]] = 1000
    alone = World(0, 1, torch.device("cpu"))
    near = np.ones(len(bank), np.bool_)
    assert shared_direction(labels, torch.from_numpy(bank), near, bank, 0.05, alone) is None


def test_a_direction_along_which_all_images_drift_is_removed_though_it_has_much_of_the_variance() -> None:
    """Some are hardly blurred and some are nothing else, so the variance along the direction is large."""
    bank, labels = planted([120] * 4 + [12] * 60, 128, 0.8)
    random = np.random.default_rng(0)
    drift, direction = random.beta(1.3, 2, (len(bank), 1)), unit(random.normal(size=(1, 128)))
    found, report = find(unit((1 - drift) ** 0.5 * bank + drift**0.5 * direction), labels)
    assert report.shared == 1
    assert pair_f(found, labels) > 0.9


def drifting(images: int, people: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Return embeddings that drift to one direction, and the truth: `people` of `images` images, and 40 of ten."""
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.repeat(np.arange(people), images), np.repeat(people + np.arange(40), 10)])
    faces = unit(rng.normal(size=(labels[-1] + 1, 256)))[labels] + 0.7 * rng.normal(size=(len(labels), 256)) / 16
    sharp = rng.beta(6, 1.5, (len(labels), 1)).clip(0.25)
    drift = sharp * unit(faces) + (1 - sharp) * unit(rng.normal(size=(1, 256)))
    return unit(drift).astype(np.float32), labels.astype(np.int32)


@pytest.mark.parametrize(("images", "people"), [(1, 1200), (2, 600)])
def test_a_direction_that_all_images_drift_along_is_found_although_hardly_any_person_has_a_sharp_image(
    images: int, people: int
) -> None:
    bank, labels = drifting(images, people)
    found, report = find(bank, labels)
    assert report.shared == 1
    assert pair_f(found, labels) > 0.95


def test_the_images_outside_share_the_direction_of_blurry_ones_and_not_that_of_a_person() -> None:
    rng = np.random.default_rng(0)
    blur, person = unit(rng.normal(size=(2, 64)))
    outside = unit(rng.normal(size=(200, 64)) / 8 + rng.uniform(0, 0.8, (200, 1)) * blur)
    assert is_common(torch.from_numpy(blur), torch.from_numpy(outside))
    # Their images drift, too.
    drifts = unit((person + 0.6 * blur)[None])[0]
    assert float((torch.from_numpy(outside) @ torch.from_numpy(drifts) > 0).double().mean()) > LIE_ALONG
    assert not is_common(torch.from_numpy(drifts), torch.from_numpy(outside))
    assert not is_common(torch.from_numpy(blur), torch.from_numpy(outside[:5]))  # too few to tell
    assert not is_common(torch.from_numpy(blur), torch.from_numpy(outside[:0]))
