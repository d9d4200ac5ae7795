"""Images in RAM on a host that several people use: whose they are, what uses them, and what is removed."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.errors import WrongUse
from deploy.pod.agent import ram
from deploy.shell import LocalShell
from deploy.specs.settings import Settings, Ssh, Target
from deploy.workspace import dataset, staging
from deploy.workspace.sources import HERE, Origin
from tests.deploy.support.pretend.app.prepare import make as prepare

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /dev/shm: run on Linux")
needs_root = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs another user: run as root")
NOBODY = 65534


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder that everybody may write to, as /dev/shm is."""
    folder = tmp_path / "shm"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


def settings_of(folder: Path, **values: object) -> Settings:
    told = {"stage_to": str(folder), "options": Ssh(host="box"), **values}
    return Settings(folder.parent, Target("box", "ssh", str(folder.parent / "root"), **told))  # type: ignore[arg-type]


def choose(folder: Path, tmp_path: Path, rows: int = 40, **values: object) -> staging.Staged:
    images = tmp_path / f"faces{rows}" / "images.npy"
    prepare(images, rows=rows)
    found = dataset.find(Origin(HERE, images, LocalShell()), 8192)
    settings = settings_of(folder, **values)
    return staging.choose_place(LocalShell(), settings, settings.root, found, 1.0)


def make_set(folder: Path, size: int = 8192) -> Path:
    """Make what staging leaves behind."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "images.npy").write_bytes(bytes(size))
    (folder / "manifest.json").write_text(json.dumps({"source": {}, "block_rows": 5}))
    return folder


def own(folder: Path) -> Path:
    return folder / f"sniperface-{ram.user()}"


def test_each_user_and_data_set_has_a_folder(shared: Path, tmp_path: Path) -> None:
    """Only the user may read it. On a rented host the path is the one that users' notes have."""
    place = choose(shared, tmp_path).path
    assert (place.name, place.parents[1]) == ("images.npy", own(shared))
    assert stat.S_IMODE(own(shared).stat().st_mode) == 0o700
    assert choose(shared, tmp_path, rows=45).path.parent != place.parent
    assert choose(shared, tmp_path, trust="rented").path == shared / "images.npy"


def test_a_link_that_another_user_planted_is_not_followed(shared: Path, tmp_path: Path) -> None:
    """The command ends with one sentence that names the link, and nothing is written behind it."""
    bait = tmp_path / "bait"
    bait.mkdir()
    own(shared).symlink_to(bait)
    with pytest.raises(WrongUse, match="it is a link, not a folder") as refused:
        choose(shared, tmp_path)
    assert str(own(shared)) in refused.value.message
    assert "set another stage_to in conf/deploy/box.yaml" in refused.value.message
    make_set(bait / "faces")
    assert ram.free_images(str(shared)) == []
    assert (bait / "faces" / "images.npy").exists()
    own(shared).unlink()
    own(shared).write_bytes(b"")
    with pytest.raises(WrongUse, match="it is a file, not a folder"):
        choose(shared, tmp_path)


@needs_root
def test_a_folder_of_another_user_is_left_alone(shared: Path, tmp_path: Path) -> None:
    """It is not used, not removed, and its images are not read, whatever its mode."""
    theirs = make_set(own(shared) / "faces")
    for path in (own(shared), theirs, *theirs.iterdir()):
        os.chown(path, NOBODY, NOBODY)
        path.chmod(0o777)
    with pytest.raises(WrongUse, match="it belongs to another user"):
        choose(shared, tmp_path)
    assert ram.free_images(str(shared)) == []
    assert (theirs / "images.npy").exists()


@needs_root
def test_a_folder_without_permission_ends_in_a_sentence(shared: Path) -> None:
    """Run as another user, because root may write everywhere."""
    shared.chmod(0o755)
    for folder in (shared, *shared.parents):
        folder.chmod(folder.stat().st_mode | 0o055) if str(folder).startswith("/tmp/pytest") else None
    child = os.fork()
    if child == 0:
        os.setuid(NOBODY)
        try:
            staging._claim(LocalShell(), settings_of(shared))
        except WrongUse as error:
            os._exit(0 if "Permission denied. Remove it, or set another stage_to" in str(error) else 2)
        os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A RAM disk of 2 MiB; 40 rows need 1.5 MB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount: run this as root on Linux")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("where", ["own", "earlier version"])
def test_unused_images_make_room_on_a_full_ram_disk(tiny: Path, tmp_path: Path, where: str) -> None:
    """Images that a process has open stay: the new ones are then read in place or kept on disk."""
    old = make_set(own(tiny) / "old" if where == "own" else tiny, 1 << 20)
    with (old / "images.npy").open("rb"):
        place = choose(tiny, tmp_path)
        assert (place.replaces, place.path.is_relative_to(tiny)) == ((), False)
        assert ram.free_images(str(tiny))[0][2] == ram.OPEN
        assert (old / "images.npy").exists()
    assert [use for _, _, use in ram.staged_images(str(tiny))] == [""]
    place = choose(tiny, tmp_path)
    assert place.replaces == (str(old),)
    assert (old / "images.npy").exists()  # nothing is removed before the images are copied
    staging.free(LocalShell(), settings_of(tiny), place)
    assert not (old / "images.npy").exists()


def test_freeing_removes_what_staging_made_and_nothing_else(shared: Path) -> None:
    """Images of earlier versions, too. A copy that goes on stays; so do files of other programs."""
    mine, earlier, part = make_set(own(shared) / "a"), make_set(shared), make_set(shared / "orl-f0.5")
    (shared / "notes.txt").write_text("mine")
    other = shared / "other"
    other.mkdir()
    (other / "images.npy").write_bytes(b"of another program")
    copied = own(shared) / "b"
    copied.mkdir()
    (copied / "images.npy.part").write_bytes(b"x")
    found = {folder: (size, use) for folder, size, use in ram.free_images(str(shared))}
    assert found == {
        str(mine): (12288, ""), str(earlier): (12288, ""), str(part): (12288, ""), str(copied): (4096, ram.COPYING)
    }  # fmt: skip
    assert sorted(path.name for path in shared.iterdir()) == ["notes.txt", "other", own(shared).name]
    os.utime(copied / "images.npy.part", (0, 0))
    assert ram.free_images(str(shared)) == [[str(copied), 4096, ""]]
    assert not own(shared).exists()
