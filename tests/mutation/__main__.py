"""Measure how many changes of the code the tests notice.

    python -m tests.mutation --seed 1 --size 300 [--only deploy/billing] [--again survived]

Changes one place of one file at a time, in a copy of the project, and runs the tests that run this line. Interrupt it
at any time: the same command goes on where it stopped. tests/mutation/mutation.toml has the settings, and
equivalent.toml the changes that no test can notice, each with its reason.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomllib

from tests.mutation import worker
from tests.mutation.mutants import Mutant, of_file, reason_of, sample, statement_at

PROJECT = Path(__file__).parents[2]
HERE = Path(__file__).parent
WORK = PROJECT / "build" / "mutation"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="of the sample")
    parser.add_argument("--size", type=int, default=300, help="mutants to draw from all folders, before --only")
    parser.add_argument("--only", default="", help="only files whose path begins so")
    parser.add_argument("--again", metavar="PATTERN", help="judge again those whose result matches: survived, killed")
    parser.add_argument("--part", default="1/1", help="of the sample: 1/2 and 2/2 may run at the same time")
    given = parser.parse_args()
    part, parts = map(int, given.part.split("/"))
    settings = tomllib.loads((HERE / "mutation.toml").read_text(encoding="utf-8"))
    reasons = tomllib.loads((HERE / "equivalent.toml").read_text(encoding="utf-8"))
    WORK.mkdir(parents=True, exist_ok=True)
    tree = _copied(f"tree-{part}")
    files = [name for name in _tracked() if name.endswith(".py") and name.startswith(tuple(settings["folders"]))]
    every = [mutant for file in files for mutant in of_file(PROJECT, file, settings["operators"])]
    drawn = [each for each in sample(every, given.size, given.seed) if each.file.startswith(given.only)]
    print(f"{len(every)} mutants in {len(files)} files; {len(drawn)} drawn with seed {given.seed}", flush=True)
    for package in settings["packages"]:
        __import__(package)
    covered = _covered(tree, settings)
    journals = {number: WORK / f"seed-{given.seed}-part-{number}.json" for number in range(1, parts + 1)}
    known = _read(journals[part])
    for number, mutant in list(enumerate(drawn, start=1))[part - 1 :: parts]:
        source = (PROJECT / mutant.file).read_text(encoding="utf-8")
        key = f"{mutant.name} {_digest(source)}"
        if key in known and not (given.again and re.match(given.again, known[key])):
            continue
        known[key] = _judged(tree, mutant, source, covered, settings, reasons)
        _replace(journals[part], json.dumps(known, indent=1))
        print(f"{number} {mutant.name}: {known[key]}", flush=True)
        if known[key] in ("survived", "no test"):
            print(f"      {mutant.shown(source)}", flush=True)
    _report(drawn, {key: told for each in journals.values() for key, told in _read(each).items()}, len(every))
    return 0


def _judged(
    tree: Path, mutant: Mutant, source: str, covered: Mapping[str, Any], settings: Mapping[str, Any],
    reasons: Mapping[str, Any],
) -> str:  # fmt: skip
    """How a mutant ended: `equivalent: WHY`, `no test`, `survived` or `killed by TEST`."""
    why = reason_of(mutant, source, reasons)
    tests, seconds = _tests_of(mutant, source, covered, settings)
    if not tests:
        return f"equivalent: {why}" if why else "no test"
    file, log = tree / mutant.file, tree.with_suffix(".log")
    limit_s = settings["limit_s"] + 10 * seconds
    try:
        _put(file, mutant.code(source))
        while tests and (failed := worker.failing(tree, tests, log, limit_s)) is not None:
            # A test that fails only now and then, on a computer under load, kills nothing.
            is_quick = covered["tests"].get(failed, 0.0) < 0.1  # starts no process
            if is_quick or failed not in tests or worker.failing(tree, [failed], log, limit_s) is not None:
                return f"killed by {failed}"
            tests = tests[tests.index(failed) + 1 :]
    finally:
        _put(file, source)
    return f"equivalent: {why}" if why else "survived"


def _tests_of(
    mutant: Mutant, source: str, covered: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[list[str], float]:
    """Tests that run the mutant's statement, the quickest first, within `tests_s` seconds, and these seconds.

    Of a statement that runs at import, tests that run anything of the file.
    """
    first, last = statement_at(source, mutant.line)
    seconds = covered["tests"]
    ids = covered["lines"].get(mutant.file, {})
    found = {test for line in range(first, last + 1) for test in ids.get(line, ())}
    if "" in found:
        found = {test for tests in ids.values() for test in tests}
        found |= {test for test in seconds if test.startswith(settings["of_imports"])}
    chosen: list[str] = []
    total = 0.0
    for test in sorted(found - {""}, key=lambda test: (seconds[test], test)):
        if seconds[test] > settings["test_s"] or total + seconds[test] > settings["tests_s"]:
            break
        chosen.append(test)
        total += seconds[test]
    return chosen, total


def _covered(tree: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Which test runs which line: {"tests": id -> s, "lines": file -> line -> ids}.

    Measured for each file of tests, again after a change of this file or of the mutated folders.
    """
    product = "".join((tree / name).read_text("utf-8") for name in _tracked() if name.startswith("deploy/"))
    seconds: dict[str, float] = {}
    lines: dict[str, dict[int, list[str]]] = {}
    for name in _tracked():
        if not name.startswith(tuple(settings["tests"])) or not Path(name).name.startswith("test_"):
            continue
        out = WORK / "lines" / f"{_digest(product + name + (tree / name).read_text('utf-8'))}.json"
        out.parent.mkdir(exist_ok=True)
        if not out.exists():
            print(f"measuring which lines {name} runs", flush=True)
            worker.cover(tree, settings["folders"], name, out)
        told = json.loads(out.read_text(encoding="utf-8"))
        seconds |= told["tests"]
        for test, ran in told["lines"].items():
            for file, line in ran:
                lines.setdefault(file, {}).setdefault(line, []).append(test)
    print(f"{len(seconds)} tests", flush=True)
    return {"tests": seconds, "lines": lines}


def _copied(name: str) -> Path:
    """A copy of the tracked files and of the new ones that are not ignored."""
    tree = WORK / name
    shutil.rmtree(tree, ignore_errors=True)
    for name in _tracked():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(PROJECT / name, tree / name)
    return tree


def _tracked() -> list[str]:
    argv = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(argv, cwd=PROJECT, capture_output=True, check=True).stdout.decode().split("\0")
    return sorted(name for name in set(found) if name and (PROJECT / name).is_file())


def _put(file: Path, code: str) -> None:
    """Write a file with a time of its own: Python compares only whole seconds and the size with its bytecode."""
    file.write_text(code, encoding="utf-8")
    os.utime(file, (0, random.randrange(1, 1 << 31)))


def _read(journal: Path) -> dict[str, str]:
    return json.loads(journal.read_text(encoding="utf-8")) if journal.exists() else {}


def _replace(file: Path, text: str) -> None:
    file.with_suffix(".new").write_text(text, encoding="utf-8")
    os.replace(file.with_suffix(".new"), file)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:12]


def _report(drawn: Sequence[Mutant], known: Mapping[str, str], population: int) -> None:
    """Print a table: a row for each folder, and the interval of the whole."""
    table: dict[str, Counter[str]] = {}
    for mutant in drawn:
        source = (PROJECT / mutant.file).read_text(encoding="utf-8")
        told = known.get(f"{mutant.name} {_digest(source)}", "not yet judged")
        word = told.partition(" by ")[0].partition(":")[0]
        for row in (str(Path(mutant.file).parent), "all"):
            table.setdefault(row, Counter())[word] += 1
    words = ("drawn", "equivalent", "killed", "survived", "no test", "killed %")
    print(f"\n{'folder':16} " + " ".join(f"{word:>10}" for word in words))
    for row, found in sorted(table.items(), key=lambda each: (each[0] == "all", each[0])):
        judged = found.total() - found["equivalent"] - found["not yet judged"]
        share = found["killed"] / judged if judged else 0.0
        counts = (judged + found["equivalent"], *(found[word] for word in words[1:-1]))
        print(f"{row:16} " + " ".join(f"{count:10}" for count in counts) + f" {share:10.1%}")
        if row == "all" and judged:
            low, high = _wilson(found["killed"], judged)
            print(f"95 % interval (Wilson): {low:.1%} to {high:.1%}, for a population of {population}")


def _wilson(killed: int, judged: int) -> tuple[float, float]:
    """The 95 % interval of a share, also if nearly all were killed."""
    share, z = killed / judged, 1.96
    middle = share + z**2 / (2 * judged)
    half = z * math.sqrt(share * (1 - share) / judged + (z / (2 * judged)) ** 2)
    return (middle - half) / (1 + z**2 / judged), (middle + half) / (1 + z**2 / judged)


if __name__ == "__main__":
    sys.exit(main())
