"""The list of pairs that LFW is published with, pairs.txt (Huang et al. 2007), beside its folder of photographs.

The first line has the number of folds and the pairs of each kind in a fold, such as `10 300`, or that last number
alone. A line of three words is one person and two of the person's photographs, `Name 1 4`; one of four words is two
people, `Name 4 Other 1`. Photograph 4 of Name is Name/Name_0004, as .jpg or another kind of image.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from app.data.sources.photograph import IMAGE_SUFFIXES
from app.errors import WrongUse

SUFFIX = ".txt"


def rows(path: Path) -> Iterator[tuple[Path, Path, bool]]:
    """Yield two photographs and whether they show one person, of each line. Raises WrongUse, naming the line."""
    try:
        lines = [line.rstrip() for line in path.read_text("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise WrongUse(f"{path} is not text in UTF-8; get LFW's pairs.txt again") from error
    told = [(number, line.split("\t" if "\t" in line else None)) for number, line in enumerate(lines, 1) if line]
    head, pairs = (told[0][1] if told else []), told[1:]
    if not 1 <= len(head) <= 2 or not all(map(_is_number, head)):
        raise WrongUse(
            f"{path} is not a list of pairs as LFW has it: it must begin with the numbers of folds and of pairs, "
            f"such as 10 300; give such a pairs.txt, or a .csv of img1,img2,label"
        )
    count = 2 * int(head[-1]) * (int(head[0]) if len(head) == 2 else 1)
    if len(pairs) != count:
        raise WrongUse(f"{path} has {len(pairs)} pairs, and its first line says {count}; get the file again")
    photographs = _Photographs(path)
    for number, words in pairs:
        where = f"line {number} of {path}"
        if len(words) not in (3, 4) or not all(map(_is_number, (words[1], words[-1]))):
            raise WrongUse(f"{where} is {' '.join(words)!r}; it must be such as Name 1 4, or Name 4 Other 1")
        name, other = words[0], words[0 if len(words) == 3 else 2]
        left, right = photographs.file(name, words[1], where), photographs.file(other, words[-1], where)
        yield left, right, len(words) == 3


def _is_number(word: str) -> bool:
    return word.isascii() and word.strip().isdigit() and len(word) < 10


class _Photographs:
    """The photographs of a list: below its own folder, or below one sub-folder of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.root: Path | None = None  # the folder of the people's folders, found with the first name
        self.of_person: dict[str, dict[str, Path]] = {}  # name -> file name without suffix -> file

    def file(self, name: str, number: str, where: str) -> Path:
        self.root = self.root or self._root(name, where)
        if name not in self.of_person:
            folder = self.root / name
            found = sorted(folder.iterdir()) if os.path.isdir(folder) else []
            self.of_person[name] = {file.stem: file for file in found if file.suffix.lower() in IMAGE_SUFFIXES}
        wanted = f"{name}_{int(number):04}"
        file = self.of_person[name].get(wanted)
        if file is None:
            raise WrongUse(
                f"{where} names photograph {int(number)} of {name}, and there is no {self.root / name / wanted}.jpg"
            )
        return file

    def _root(self, name: str, where: str) -> Path:
        here = self.path.parent
        if os.path.isdir(here / name):  # False also for a name that no file can have
            return here
        found = [each for each in sorted(here.iterdir()) if each.name[0] != "." and os.path.isdir(each / name)]
        if not found:
            raise WrongUse(
                f"{where} names {name}, and there is no folder {name} in {here} or a folder of it; "
                f"put {self.path.name} beside the folder of the photographs, such as {here / 'lfw'}"
            )
        if len(found) > 1:
            raise WrongUse(
                f"{where} names {name}, and both {found[0]} and {found[1]} have a folder {name}; "
                f"put {self.path.name} into the one to read, such as {found[0] / self.path.name}"
            )
        return found[0]
