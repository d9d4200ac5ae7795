"""Which types of Lambda's catalogue a target rents, in which order, and why it does not rent the others."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.providers.lambda_cloud import LambdaCloud
from deploy.providers.lambda_cloud.api import InstanceType
from deploy.providers.lambda_cloud.candidates import choose, refusals, rentals, why_not

A10 = InstanceType("gpu_1x_a10", "A10 (24 GB PCIe)", 1, 0.75, 24.0, ("us-east-1", "us-west-1"))
A100 = InstanceType("gpu_1x_a100", "A100 (40 GB SXM4)", 1, 1.29, 40.0, ("us-west-1",))
ARM = InstanceType("gpu_1x_gh200", "GH200 (96 GB)", 1, 0.49, 96.0, ("us-east-1",))
EIGHT = InstanceType("gpu_8x_a100", "A100 (40 GB SXM4)", 8, 10.32, 40.0, ("us-east-1",))
ODD = InstanceType("gpu_1x_new", "New", 1, 0.60, None, ())
TYPES = [EIGHT, A100, A10, ARM, ODD]


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({}, [(A10, "us-east-1"), (A10, "us-west-1"), (A100, "us-west-1")]),
        ({"instance_types": ("gpu_1x_a100", "gpu_1x_a10")}, [(A100, "us-west-1"), *((A10, r) for r in A10.regions)]),
        ({"instance_types": ("gpu_1x_gh200",)}, [(ARM, "us-east-1")]),
        ({"regions": ("us-west-1", "us-east-1")}, [(A10, "us-west-1"), (A10, "us-east-1"), (A100, "us-west-1")]),
        ({"regions": ("europe-1",)}, []),
        ({"gpu_count": 8}, [(EIGHT, "us-east-1")]),
        ({"min_gpu_memory_gib": 40.0}, [(A100, "us-west-1")]),
        ({"max_usd_per_hour": 0.75}, [(A10, "us-east-1"), (A10, "us-west-1")]),  # the ceiling itself is allowed
        ({"max_usd_per_hour": 0.74}, []),
    ],
)
def test_types_are_tried_in_the_users_order_or_the_cheapest_first(keys: dict[str, Any], wanted: list[Any]) -> None:
    assert choose(LambdaCloud(**keys), TYPES) == wanted


@pytest.mark.parametrize(
    ("keys", "kind", "why"),
    [
        ({}, A10, ""),
        ({"instance_types": ("gpu_1x_a100",)}, A10, "not in instance_types"),
        ({}, ARM, "its CPU is Arm; name it in instance_types to try it"),
        ({"gpu_count": 2}, A10, "1 GPU, not gpu_count: 2"),
        ({"min_gpu_memory_gib": 25.0}, A10, "less memory than min_gpu_memory_gib: 25"),
        ({"min_gpu_memory_gib": 1.0}, ODD, "less memory than min_gpu_memory_gib: 1"),  # it names no memory
        ({"max_usd_per_hour": 0.7}, A10, "0.75 USD an hour, more than max_usd_per_hour: 0.7"),
        ({}, ODD, "no capacity"),
        ({"regions": ("us-east-1",)}, A100, "no capacity in us-east-1"),
    ],
)
def test_a_type_that_is_not_rented_has_a_reason(keys: dict[str, Any], kind: InstanceType, why: str) -> None:
    assert why_not(LambdaCloud(**keys), kind) == why


def test_the_catalogue_is_shown_whole_and_refusals_name_only_what_the_target_asks_for() -> None:
    options = LambdaCloud(instance_types=("gpu_8x_a100", "gpu_1x_a10"))
    shown = {each.gpu: (each.in_target, each.why_not) for each in rentals(options, TYPES)}
    assert shown == {
        "gpu_8x_a100": (True, "8 GPUs, not gpu_count: 1"),
        "gpu_1x_a100": (False, ""),
        "gpu_1x_a10": (True, ""),
        "gpu_1x_gh200": (False, ""),
        "gpu_1x_new": (False, "no capacity"),
    }
    assert refusals(options, TYPES) == ["gpu_8x_a100: 8 GPUs, not gpu_count: 1"]
