"""List the mutants of a file: where it can be changed, and how. The changes are those of cosmic-ray."""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

Range = tuple[tuple[int, int], tuple[int, int]]  # line and column of the begin, and of the end


@dataclass(frozen=True, order=True)
class Mutant:
    """One change of one file. `column` and `occurrence` tell two changes of a line apart."""

    file: str  # from the project folder
    line: int
    column: int
    operator: str
    occurrence: int

    @property
    def name(self) -> str:
        return f"{self.file}:{self.line}:{self.column} {self.operator}"

    def code(self, source: str) -> str:
        """The source with the change in it."""
        changed: str = mutate_code(source, get_operator(f"core/{self.operator}")(), self.occurrence)
        return changed

    def shown(self, source: str) -> str:
        """The changed lines: before -> after."""
        before, after = source.splitlines(), self.code(source).splitlines()
        pairs = [(a.strip(), b.strip()) for a, b in zip(before, after, strict=False) if a != b]
        return "; ".join(f"{a}  ->  {b}" for a, b in pairs[:2])


def of_file(project: Path, file: str, operators: Sequence[str]) -> list[Mutant]:
    """All mutants of a file by operators that fully match one of the patterns, without those of type annotations.

    Annotations are never evaluated: each file begins with `from __future__ import annotations`. The stars of arguments
    are left out too: cosmic-ray takes them for multiplications.
    """
    source = (project / file).read_text(encoding="utf-8")
    parsed = ast.parse(source)
    hints, signs = list(_annotations(parsed)), list(_signs(parsed))
    tree, found = get_ast(source), []
    for full_name in operator_names():
        name = full_name.partition("/")[2]
        if not any(re.fullmatch(pattern, name) for pattern in operators):
            continue
        operator = get_operator(full_name)()
        places = (begin for node in ast_nodes(tree) for begin, _ in operator.mutation_positions(node))
        for occurrence, (line, column) in enumerate(places):
            at = (line, column)
            is_sign = not name.startswith("ReplaceBinary") or any(begin <= at < end for begin, end in signs)
            if is_sign and not any(begin <= at < end for begin, end in hints):
                found.append(Mutant(file, line, column, name, occurrence))
    return sorted(found)


def sample(mutants: Sequence[Mutant], size: int, seed: int) -> list[Mutant]:
    """Choose `size` of the mutants at random, or all if there are fewer."""
    return random.Random(seed).sample(list(mutants), min(size, len(mutants)))


def reason_of(mutant: Mutant, source: str, reasons: Mapping[str, Mapping[str, str]]) -> str | None:
    """Why a mutant is equivalent: the file of reasons has the changed line's text and a pattern of its operator."""
    text = source.splitlines()[mutant.line - 1].strip()
    for key, why in reasons.get(mutant.file, {}).items():
        operator, _, of_line = key.partition(" ")
        if of_line == text and re.fullmatch(operator, mutant.operator):
            return why
    return None


def statement_at(source: str, line: int) -> tuple[int, int]:
    """First and last line of the smallest statement with this line; of a compound one, only its head."""
    best = (line, line)
    for node in ast.walk(ast.parse(source)):  # outer statements come first
        if isinstance(node, ast.stmt | ast.ExceptHandler | ast.match_case):
            body = getattr(node, "body", None)
            first = getattr(node, "lineno", line)
            last = body[0].lineno - 1 if body else node.end_lineno or line  # type: ignore[union-attr]
            if first <= line <= max(first, last):
                best = first, max(first, last)
    return best


def _annotations(tree: ast.AST) -> Iterator[Range]:
    for node in ast.walk(tree):
        for hint in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if isinstance(hint, ast.expr):
                yield (hint.lineno, hint.col_offset), (hint.end_lineno or 0, hint.end_col_offset or 0)


def _signs(tree: ast.AST) -> Iterator[Range]:
    """Between the two sides of each operation of two values."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp):
            end = node.left.end_lineno or 0, node.left.end_col_offset or 0
            yield end, (node.right.lineno, node.right.col_offset)
