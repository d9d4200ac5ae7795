"""A list of pairs of photographs, in a CSV file or as LFW has it: read for evaluation, or prepared as images.npy.

Letters: P pairs.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.data.sources import lfw
from app.errors import WrongUse

LISTS = (".csv", lfw.SUFFIX)
YES, NO = {"1", "true", "same"}, {"0", "false", "different", "-1"}
EXAMPLE = "a/1.jpg,a/2.jpg,1"


@dataclass(frozen=True)
class Pairs:
    """Distinct photographs in the order of the list, and int64 [P, 3]: photograph, photograph, 1 or 0."""

    path: Path
    files: Sequence[Path]
    pairs: NDArray[np.int64]

    def among(self, left_out: Mapping[int, str]) -> NDArray[np.int64]:
        """The pairs [p, 3] of photographs that remain, numbered without those in `left_out`."""
        kept = np.array([row not in left_out for row in range(len(self.files))])
        numbers = np.cumsum(kept) - 1
        pairs = self.pairs[kept[self.pairs[:, :2]].all(1)]
        return np.column_stack([numbers[pairs[:, :2]], pairs[:, 2]])

    def without(self, left_out: Mapping[int, str]) -> tuple[NDArray[np.int64], dict[str, Any]]:
        """As `among`, and its counts for the manifest. Raises WrongUse if nothing of one kind remains."""
        pairs = self.among(left_out)
        facts = {
            "count": len(pairs),
            "of_one_person": int(pairs[:, 2].sum()),
            "left_out": len(self.pairs) - len(pairs),
        }
        if not 0 < facts["of_one_person"] < len(pairs):
            raise WrongUse(
                f"{facts['of_one_person']} of the {len(pairs)} pairs of {self.path} that remain show one person, and a "
                f"measurement needs both kinds; give more pairs, or not_found=keep"
            )
        return pairs, facts


def read_pairs(path: Path) -> Pairs:
    """Read lines of img1,img2,label with an optional header, or a .txt as LFW has it (lfw.py).

    The paths of a .csv are relative to the file; labels are 1 or 0. Raises WrongUse with the row that does not fit,
    also for a missing image.
    """
    if not path.is_file():
        raise WrongUse(f"there is no file {path}; give a CSV file with lines such as {EXAMPLE}, or LFW's pairs.txt")
    number: dict[Path, int] = {}
    pairs = [
        (number.setdefault(left, len(number)), number.setdefault(right, len(number)), int(same))
        for left, right, same in (lfw.rows(path) if path.suffix == lfw.SUFFIX else _csv_rows(path))
    ]
    if not pairs:
        raise WrongUse(f"{path} has no pairs; give lines of img1,img2,label such as {EXAMPLE}")
    return Pairs(path, list(number), np.array(pairs, np.int64))


def _csv_rows(path: Path) -> Iterator[tuple[Path, Path, bool]]:
    known = set[Path]()
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            for row in reader:
                if not any(map(str.strip, row)) or (reader.line_num == 1 and _is_header(row, path.parent)):
                    continue
                left, right, same = _read_row(row, f"row {reader.line_num} of {path}")
                for name in (left, right):
                    image = path.parent / name
                    if image not in known and not image.is_file():
                        raise WrongUse(
                            f"row {reader.line_num} of {path} names {name}, and there is no file {image}; "
                            f"give paths relative to {path.parent}"
                        )
                    known.add(image)
                yield path.parent / left, path.parent / right, same
    except (UnicodeDecodeError, csv.Error) as error:
        raise WrongUse(f"{path} is not CSV text in UTF-8; save it as lines of img1,img2,label") from error


def _is_header(row: Sequence[str], folder: Path) -> bool:
    if len(row) < 3 or any((folder / name.strip()).is_file() for name in row[:2]):
        return False
    label = row[2].strip().lower()
    if label == "same":  # a usual name of the column, and a label too
        return not any(Path(name.strip()).suffix for name in row[:2])
    return label not in YES | NO and not label.lstrip("-").isdigit()


def _read_row(row: Sequence[str], where: str) -> tuple[str, str, bool]:
    fields = [field.strip() for field in row]
    if len(fields) < 3 or fields[2].lower() not in YES | NO:
        raise WrongUse(f"{where} is {','.join(row)!r}; it must be img1,img2,label with the label 1 or 0")
    return fields[0], fields[1], fields[2].lower() in YES
