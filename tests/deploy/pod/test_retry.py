"""The pauses between attempts."""

from __future__ import annotations

from itertools import islice

from deploy.pod.base import retry


def test_the_last_pause_is_repeated() -> None:
    assert list(islice(retry.endless(retry.CONNECT_PAUSES_S), 6)) == [0.1, 0.2, 0.5, 1.0, 1.0, 1.0]
    assert list(islice(retry.endless((7,)), 3)) == [7, 7, 7]


def test_a_series_of_pauses_grows() -> None:
    series = {name: value for name, value in vars(retry).items() if name.endswith(("PAUSES_S", "POLLS_S"))}
    assert len(series) >= 6
    for name, pauses_s in series.items():
        assert list(pauses_s) == sorted(pauses_s), name
        assert pauses_s[0] > 0, name
