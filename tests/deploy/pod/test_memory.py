"""Memory that counts against a cgroup's limit."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.pod.agent.verbs import cached_bytes
from deploy.pod.base.processes import oom_kills

VERSION_2 = "anon 5000\nfile 4000\nshmem 1000\ninactive_anon 6000\nactive_file 700\ninactive_file 2300\nfile_mapped 9\n"
VERSION_1 = "cache 10\nactive_file 1\ninactive_file 2\ntotal_active_file 700\ntotal_inactive_file 2300\n"


@pytest.mark.parametrize(("stat", "cached"), [(VERSION_2, 3000), (VERSION_1, 3000), ("", 0), ("active_file x\n", 0)])
def test_pages_of_files_on_disk_are_no_used_memory(stat: str, cached: int) -> None:
    """Also those that were read often: they would keep images out of the RAM of a machine that only read files."""
    assert cached_bytes(stat) == cached


@pytest.mark.parametrize(
    ("groups", "files", "kills"),
    [
        ("0::/\n", {"sys/fs/cgroup/memory.events": "oom 9\noom_kill 2\n"}, 2),
        ("0::/user/a\n", {"sys/fs/cgroup/user/a/memory.events": "oom_kill 3\n"}, 3),
        ("0::/of/host\n", {"sys/fs/cgroup/memory.events": "oom_kill 4\n"}, 4),
        ("4:cpu,memory:/a\n0::/\n", {"sys/fs/cgroup/memory/a/memory.oom_control": "under_oom 0\noom_kill 5\n"}, 5),
        ("4:memory:/of/host\n", {"sys/fs/cgroup/memory/memory.oom_control": "oom_kill 6\n"}, 6),
        ("0::/\n", {}, 70),
        ("", {"sys/fs/cgroup/memory.events": "low 1\n"}, 70),
        (None, {"proc/vmstat": "rubbish"}, 0),
        ("0::/gr\xfc\xdfe\n", {}, 70),
        ("rubbish\n", {}, 70),
    ],
    ids=[
        "container",
        "login",
        "host's path",
        "version 1",
        "version 1, host's path",
        "no group",
        "no count",
        "nothing",
        "not UTF-8",
        "strange",
    ],
)
def test_kills_are_those_of_the_own_group(
    tmp_path: Path, groups: str | None, files: dict[str, str], kills: int
) -> None:
    """A rented machine shares its host with others: that theirs were killed is no reason of this job's end."""
    told = {"proc/vmstat": "pgfault 1\noom_kill 70\n", **({"proc/self/cgroup": groups} if groups else {}), **files}
    for name, text in told.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="latin-1")
    assert oom_kills(tmp_path) == kills
