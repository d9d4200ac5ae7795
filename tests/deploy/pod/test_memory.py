"""Memory that counts against a cgroup's limit."""

from __future__ import annotations

import pytest

from deploy.pod.agent.verbs import cached_bytes

VERSION_2 = "anon 5000\nfile 4000\nshmem 1000\ninactive_anon 6000\nactive_file 700\ninactive_file 2300\nfile_mapped 9\n"
VERSION_1 = "cache 10\nactive_file 1\ninactive_file 2\ntotal_active_file 700\ntotal_inactive_file 2300\n"


@pytest.mark.parametrize(("stat", "cached"), [(VERSION_2, 3000), (VERSION_1, 3000), ("", 0), ("active_file x\n", 0)])
def test_pages_of_files_on_disk_are_no_used_memory(stat: str, cached: int) -> None:
    """Also those that were read often: they would keep images out of the RAM of a machine that only read files."""
    assert cached_bytes(stat) == cached
