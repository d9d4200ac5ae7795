"""Work on several cores: results in order, errors, and slices for all rows."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from app.runtime.threads import on_cores, shares


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_results_are_in_the_order_of_the_calls() -> None:
    assert on_cores(pow, [(2, n) for n in range(20)]) == [2**n for n in range(20)]
    assert on_cores(pow, []) == []


def test_as_many_threads_work_at_a_time_as_torch_uses(threads: int) -> None:
    together = threading.Barrier(threads)
    assert len(on_cores(lambda _: together.wait(timeout=60), [(n,) for n in range(threads)])) == threads


@pytest.mark.usefixtures("threads")
def test_an_error_of_one_call_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        on_cores(divmod, [(1, 1), (1, 0), (2, 1)])


@pytest.mark.parametrize("count", [0, 1, 2, 3, 100])
def test_shares_are_all_rows_once_and_about_equal(count: int, threads: int) -> None:
    parts = [list(range(count))[part] for part in shares(count)]
    assert [row for part in parts for row in part] == list(range(count))
    assert len(parts) == max(1, min(count, threads))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
