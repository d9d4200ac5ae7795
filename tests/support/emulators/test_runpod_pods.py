from __future__ import annotations

import pytest

from tests.support.emulators.runpod_pods import gateway_of

IPV6 = {"Subnet": "fd00:dead::/64", "Gateway": "fd00:dead::1"}


@pytest.mark.parametrize(
    ("pools", "address"),
    [
        ([{"Subnet": "172.17.0.0/16"}], "172.17.0.1"),  # Docker 20.10.24 at its first start
        ([{"Subnet": "172.17.0.0/16", "Gateway": "172.17.0.1"}], "172.17.0.1"),  # at later starts
        ([{"Subnet": "10.9.0.0/24", "Gateway": "10.9.0.254"}], "10.9.0.254"),
        ([{"Subnet": "192.168.7.128/25"}], "192.168.7.129"),
        ([IPV6, {"Subnet": "172.18.0.0/16"}], "172.18.0.1"),
    ],
)
def test_containers_reach_this_computer_from_the_engines_first_start_on(
    pools: list[dict[str, str]], address: str
) -> None:
    assert gateway_of(pools) == address
