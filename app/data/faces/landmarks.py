"""Five points for each photograph in a CSV file: written by align=auto, read by landmarks=FILE.csv."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from app.errors import WrongUse
from app.files import atomic

POINTS = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")  # left and right in the image
COLUMNS = ("file", *(f"{point}_{axis}" for point in POINTS for axis in "xy"))
EXAMPLE = "Ana/1.jpg,38.3,51.7,73.5,51.5,56.0,71.7,41.5,92.4,70.7,92.2"

MOST = 1_000_000.0  # pixels

Points = tuple[float, ...]  # x, y of each of POINTS in turn: 10 numbers, in pixels of the upright photograph


def read_landmarks(path: Path, names: Iterable[str]) -> dict[str, Points]:
    """Read a CSV file of COLUMNS, with or without a header; later columns are ignored.

    `names` are the photographs it may speak of. Raises WrongUse with the number of the line that does not fit.
    """
    known, points = set(names), dict[str, Points]()
    mirrored = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = [(number, line) for number, line in enumerate(csv.reader(file), 1) if line]
    except FileNotFoundError as error:
        raise WrongUse(f"there is no file {path}; give landmarks=FILE.csv with lines such as {EXAMPLE}") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise WrongUse(f"{path} is not a CSV file in UTF-8 ({error}); write lines such as {EXAMPLE}") from error
    if lines and _numbers(lines[0][1]) is None:
        lines = lines[1:]
    for number, line in lines:
        numbers, name = _numbers(line), line[0].strip().replace("\\", "/").removeprefix("./")
        if numbers is None:
            raise WrongUse(f"line {number} of {path} is not a file and 10 numbers; write it as {EXAMPLE}")
        if max(numbers[0::2]) - min(numbers[0::2]) < 1 or max(numbers[1::2]) - min(numbers[1::2]) < 1:
            raise WrongUse(f"line {number} of {path} has all points on one line; write them in pixels, as {EXAMPLE}")
        if name in points:
            raise WrongUse(f"line {number} of {path} names {name} a second time; keep one line for each file")
        mirrored += numbers[0] > numbers[2] and numbers[6] > numbers[8]
        points[name] = numbers
    found = points.keys() & known
    if not found:
        told = f"such as {next(iter(points))}" if points else "as the file is empty"
        raise WrongUse(
            f"{path} names no image of the folder, {told}; write names relative to the folder, such as {EXAMPLE}"
        )
    if mirrored * 2 > len(points):
        raise WrongUse(f"{path} has right before left; left means left in the image: {EXAMPLE}")
    return {name: points[name] for name in found}


def _numbers(line: list[str]) -> Points | None:
    try:
        numbers = tuple(float(word) for word in line[1 : len(COLUMNS)])
    except ValueError:
        return None
    usual = all(math.isfinite(number) and abs(number) <= MOST for number in numbers)
    return numbers if len(numbers) == len(COLUMNS) - 1 and usual else None


def write_landmarks(path: Path, points: Mapping[str, Points]) -> None:
    """Write a file that `read_landmarks` reads."""
    with atomic(path) as file:
        lines = [f"{quoted(name)},{','.join(f'{x:.2f}' for x in its)}" for name, its in points.items()]
        file.write("\n".join([",".join(COLUMNS), *lines, ""]).encode("utf-8", "surrogateescape"))


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"' if {*name} & {*',"\n\r'} else name
