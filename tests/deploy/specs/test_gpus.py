"""Which GPUs of a catalogue --gpus means. The names are those of RunPod and Lambda Cloud; prices are invented."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest

from deploy.errors import WrongUse
from deploy.specs.gpus import (
    Choice,
    Renting,
    choose,
    count_of,
    fitting,
    is_among,
    names_of,
    parse_gpus,
    refuse_other_machine,
    refuse_other_targets,
)
from deploy.specs.machine import Machine, Rental
from deploy.specs.request import parse_request


def pod(gpu: str, title: str, usd_per_hour: float, most: int = 8) -> Rental:
    return Rental(
        gpu, 1, 80.0, usd_per_hour, (), False, "" if most else "not offered", title, tuple(range(1, most + 1))
    )


PODS = [
    pod("NVIDIA A100-SXM4-80GB", "A100 SXM", 1.49),
    pod("NVIDIA A100 80GB PCIe", "A100 PCIe", 1.39),
    pod("NVIDIA A40", "A40", 0.40),
    pod("NVIDIA RTX A4000", "RTX A4000", 0.25),
    pod("NVIDIA RTX A4500", "RTX A4500", 0.25, 4),
    pod("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada", 0.77),
    pod("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX PRO 6000", 1.79),
    pod("NVIDIA H200", "H200 SXM", 0.0, 0),
]
TYPES = [
    Rental("gpu_8x_a100", 8, 40.0, 10.32, (), False, "", "A100 (40 GB SXM4)", (8,)),
    Rental("gpu_1x_a100_sxm4", 1, 40.0, 1.29, (), False, "", "A100 (40 GB SXM4)", (1,)),
    Rental("gpu_1x_a100", 1, 40.0, 1.10, (), False, "", "A100 (40 GB PCIe)", (1,)),
    Rental("gpu_1x_a10", 1, 24.0, 0.75, (), False, "", "A10 (24 GB PCIe)", (1,)),
]


@pytest.mark.parametrize(
    ("texts", "parsed", "names", "count"),
    [
        (["A100:2"], ("A100:2",), ("A100",), 2),
        (["RTX A4500,A40"], ("RTX A4500", "A40"), ("RTX A4500", "A40"), None),
        (["A100:2", "A40"], ("A100:2", "A40:2"), ("A100", "A40"), 2),
        ([" A40 : 2 , A40:2"], ("A40:2",), ("A40",), 2),
    ],
)
def test_texts_are_alternatives_with_one_count(
    texts: list[str], parsed: tuple[str, ...], names: tuple[str, ...], count: int | None
) -> None:
    assert parse_gpus(texts) == parsed
    assert (names_of(parsed), count_of(parsed)) == (names, count)
    assert parse_gpus(parsed) == parsed
    assert parse_request(gpus=texts, spot=True).given == {"gpus", "spot"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has an empty name: give names of GPUs, such as --gpus A100:2,A40:2"),
        ("A100,", "has an empty name"),
        (":2", "has an empty name"),
        ("--", "has an empty name"),
        (
            "A100:",
            "--gpus A100: has no number of GPUs after the colon: give a whole number from 1, such as --gpus A100:2",
        ),
        ("A100:0", "such as --gpus A100:2"),
        ("A100:-1", "such as --gpus A100:2"),
        ("A100:1.5", "such as --gpus A100:2"),
        ("A100:two", "such as --gpus A100:2"),
        ("A100:2:3", "such as --gpus A100:2"),
        ("A100:99999", "such as --gpus A100:2"),
        (
            "A100:2,A40:4",
            "has several counts, and all alternatives have the same: give one, such as --gpus A100:2,A40:2",
        ),
    ],
)
def test_a_wrong_text_is_named_with_one_that_works(text: str, words: str) -> None:
    with pytest.raises(WrongUse) as caught:
        parse_request(gpus=[text])
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA A40", ["NVIDIA A40"]),
        ("a40", ["NVIDIA A40"]),  # not the A4000
        ("A100 SXM", ["NVIDIA A100-SXM4-80GB"]),  # as RunPod's pages call it
        ("A100", ["NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"]),
        ("A100-80GB", ["NVIDIA A100 80GB PCIe"]),  # side by side
        ("80GB A100", ["NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"]),
        ("RTX 6000", ["NVIDIA RTX 6000 Ada Generation"]),  # not the RTX PRO 6000, whose words are apart
        ("A4", []),
        ("A10", []),
    ],
)
def test_words_of_a_name_are_enough(name: str, expected: list[str]) -> None:
    assert [each.gpu for each in fitting(name, PODS)] == expected


@pytest.mark.parametrize(
    ("gpus", "default", "names", "count"),
    [
        (("A100:2",), 1, ("NVIDIA A100 80GB PCIe", "NVIDIA A100-SXM4-80GB"), 2),  # the cheaper first
        (("A40", "A100"), 1, ("NVIDIA A40", "NVIDIA A100 80GB PCIe", "NVIDIA A100-SXM4-80GB"), 1),
        (("A100", "A40"), 4, ("NVIDIA A100 80GB PCIe", "NVIDIA A100-SXM4-80GB", "NVIDIA A40"), 4),
        (("A100 SXM", "A100"), 1, ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"), 1),
    ],
)
def test_alternatives_come_in_the_users_order_and_several_of_one_name_by_price(
    gpus: tuple[str, ...], default: int, names: tuple[str, ...], count: int
) -> None:
    chosen = choose(gpus, PODS, default, None, "runpod", "runpod.yaml")
    assert (chosen.names, chosen.count) == (names, count)


def test_types_of_machines_have_their_count() -> None:
    def chosen(*gpus: str) -> tuple[tuple[str, ...], int]:
        choice = choose(gpus, TYPES, 1, None, "lambda", "lambda.yaml")
        return choice.names, choice.count

    assert chosen("A100") == (("gpu_1x_a100", "gpu_1x_a100_sxm4"), 1)
    assert chosen("A100:8") == (("gpu_8x_a100",), 8)
    assert chosen("gpu_8x_a100") == (("gpu_8x_a100",), 8)
    with pytest.raises(WrongUse, match=r"gpu_8x_a100: no machine has so many: give --gpus A100:1$"):
        chosen("A100:4")


@pytest.mark.parametrize(
    ("gpus", "ceiling", "words"),
    [
        (("A4OO0",), None, "--gpus A4OO0: the provider has no GPU of this name, did you mean"),
        (
            ("A40", "RTX A4501"),
            None,
            '--gpus RTX A4501: the provider has no GPU of this name, did you mean --gpus "NVIDIA',
        ),
        (("zzz",), None, "--gpus zzz: the provider has no GPU of this name"),
        (("A40:16",), None, "--gpus A40:16: NVIDIA A40: the largest machine has 8: give --gpus A40:8"),
        (("RTX A4500:8",), None, 'the largest machine has 4: give --gpus "RTX A4500:4"'),
        (("H200",), None, "--gpus H200:1: NVIDIA H200 cannot be rented (not offered): name another GPU"),
        (
            ("A100",),
            1.0,
            "--gpus A100 costs 1.39 USD an hour or more, above max_usd_per_hour: 1 in runpod.yaml: set "
            "max_usd_per_hour: 2, or name cheaper GPUs",
        ),
    ],
)
def test_what_the_provider_has_not_is_refused(gpus: tuple[str, ...], ceiling: float | None, words: str) -> None:
    with pytest.raises(WrongUse) as caught:
        choose(gpus, PODS, 1, ceiling, "runpod", "runpod.yaml")
    assert words in caught.value.message
    assert "offers --on runpod" in str(caught.value.next_command) or ceiling


@pytest.mark.parametrize(
    ("gpu", "is_right"),
    [
        ("NVIDIA RTX A4500", True),
        ("RTX A4500", True),  # as api: sdk reports it
        ("A10 (24 GB PCIe)", True),  # as Lambda Cloud reports it
        ("NVIDIA RTX A4000", False),
        ("NVIDIA A40", False),
    ],
)
def test_a_machine_has_one_of_the_chosen_gpus(gpu: str, is_right: bool) -> None:
    assert is_among(gpu, Choice(("NVIDIA RTX A4500", "gpu_1x_a10"), 1, ("A10 (24 GB PCIe)",))) is is_right


def test_a_target_that_does_not_rent_so_is_named() -> None:
    keys = {"gpus": "instance_types", "gpu_count": "gpu_count"}
    refuse_other_targets(("A10",), False, keys, "lambda")
    with pytest.raises(WrongUse, match=r"^--spot: target 'lambda' rents no spot machines: leave it out"):
        refuse_other_targets(("A10",), True, keys, "lambda")
    with pytest.raises(WrongUse, match=r"^--gpus A10:2: target 'ssh' rents no GPUs: leave it out, or give --on"):
        refuse_other_targets(("A10:2",), True, {}, "ssh")


SPOTS = {"gpus": "gpus", "gpu_count": "gpu_count", "spot": "spot"}


@pytest.mark.parametrize(
    ("asked", "keys", "said"),
    [
        (Renting(), SPOTS, {}),
        (Renting(spot=True), SPOTS, {"spot": True}),
        (Renting(no_spot=True), SPOTS, {"spot": False}),
        (Renting(no_spot=True), {}, {}),  # a target without spot machines rents none anyway
        (Renting(("A100", "A40")), SPOTS, {}),  # names need the catalogue
        (Renting(("A100:2", "A40:2"), spot=True), SPOTS, {"gpu_count": 2, "spot": True}),
    ],
)
def test_what_a_command_says_about_renting_wins(asked: Renting, keys: dict[str, str], said: dict[str, object]) -> None:
    assert asked.said(keys, "runpod") == said


@pytest.mark.parametrize(
    ("gpu", "count", "is_right"),
    [
        ("NVIDIA A40", 2, True),
        (None, None, True),  # only the machine knows
        ("NVIDIA A40", 1, False),
        ("NVIDIA A100-SXM4-80GB", 2, False),
    ],
)
def test_a_machine_with_other_gpus_is_in_the_way(gpu: str | None, count: int | None, is_right: bool) -> None:
    machine = Machine("sniperface-pods-1", PurePosixPath("/workspace"), "python", gpu=gpu, gpus=count)
    asked, choice = Renting(("A40:2",)), Choice(("NVIDIA A40",), 2)
    refuse_other_machine(asked, choice, [], "pods")
    if is_right:
        refuse_other_machine(asked, choice, [machine], "pods")
        return
    with pytest.raises(WrongUse, match=f"^--gpus A40:2: the machine of target 'pods' has {count} x {gpu}: leave"):
        refuse_other_machine(asked, choice, [machine], "pods")
