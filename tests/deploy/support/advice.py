"""Find every place of the launcher that prints a command to type, by reading its source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

SOURCE = Path(__file__).parents[3]
ANY = "\0"  # a part of a text that is known only when the command runs
CALLS = {"command", "bootstrap_command"}
# What these calls print for a run of another target than `local`.
KNOWN_CALLS = {"on": f" --on {ANY}", "resume": f"invoke train --resume auto --on {ANY} --run {ANY}"}


@dataclass(frozen=True)
class Printed:
    """One `command(…)` of the source: the words after `invoke`."""

    where: str  # file:function
    words: str

    def __str__(self) -> str:
        return f"{self.where}: {self.words.replace(ANY, 'X')}"


@dataclass(frozen=True)
class Advice:
    """One error with a next command: texts with ANY for what is known only at run time."""

    where: str
    messages: tuple[str, ...]  # it prints one of them
    following: str

    @property
    def is_command(self) -> bool:
        """Whether it can be typed. Other advice is a sentence, such as `set another root in …`."""
        first = self.following.replace(ANY, "").split(" ")[0].strip('"')
        return first not in ("set", "look", "terminate", "add", "check", "raise", "create", "make", "get")

    def is_printed_by(self, message: str, following: str) -> bool:
        return any(each.fullmatch(message) for each in self._messages) and bool(self._following.fullmatch(following))

    @cached_property
    def _messages(self) -> list[re.Pattern[str]]:
        return [_pattern(message) for message in self.messages]

    @cached_property
    def _following(self) -> re.Pattern[str]:
        return _pattern(self.following)

    def __str__(self) -> str:
        return f"{self.where}: {self.following.replace(ANY, '…')} <- {self.messages[0].replace(ANY, '…')[:60]}"


def _pattern(text: str) -> re.Pattern[str]:
    """A pattern of what a text may become. A command for the target `local` names no target."""
    parts = [".*".join(map(re.escape, part.split(ANY))) for part in text.split(f" --on {ANY}")]
    return re.compile("( --on .*)?".join(parts), re.DOTALL)


def printed() -> list[Printed]:
    """Each call of `command(…)` in the launcher whose text the source shows."""
    found = []
    for file in _files():
        for call in file.calls:
            if _name(call.func) == "command" and call.args:
                found += [Printed(file.where(call), words) for words in file.texts(call.args[0], call)]
    return found


def advices() -> list[Advice]:
    """Each error of the launcher that is raised with a next command."""
    found = []
    for file in _files():
        for call in file.calls:
            for keyword in call.keywords:
                is_none = isinstance(keyword.value, ast.Constant) and keyword.value.value is None
                if keyword.arg == "next_command" and not is_none:
                    messages = tuple(file.texts(call.args[0], call)) if call.args else (ANY,)
                    texts = [text for text in file.texts(keyword.value, call) if text != "None"]
                    found += [Advice(file.where(call), messages, text) for text in texts]
    return found


@cache
def _files() -> list[_File]:
    """The files that call `command` or give a `next_command`. Each process of the tests parses only these, once."""
    sources = {path: path.read_text(encoding="utf-8") for path in sorted((SOURCE / "deploy").rglob("*.py"))}
    return [_File(path, source) for path, source in sources.items() if re.search(r"\bcommand\(|next_command=", source)]


class _File:
    def __init__(self, path: Path, source: str) -> None:
        self.name = path.relative_to(SOURCE).as_posix()
        self.tree = ast.parse(source)
        nodes = list(ast.walk(self.tree))
        self.functions = [each for each in nodes if isinstance(each, ast.FunctionDef)]
        self.calls = [each for each in nodes if isinstance(each, ast.Call)]

    def where(self, node: ast.AST) -> str:
        function = self._function(node)
        return f"{self.name}:{function.name if function else ''}"

    def texts(self, node: ast.expr, at: ast.AST) -> list[str]:
        """The texts that an expression may have. A name stands for what its function or module assigns to it."""
        if isinstance(node, ast.Constant):
            return [str(node.value)]
        if isinstance(node, ast.JoinedStr):
            return _products([self.texts(part, at) for part in node.values])
        if isinstance(node, ast.FormattedValue):
            inner = node.value
            if isinstance(inner, ast.Name):
                commands = [each for each in self._assigned(inner.id, at) if self._is_command(each)]
                return [text for each in commands for text in self.texts(each, at)] or [ANY]
            return self.texts(inner, at) if self._is_command(inner) else [ANY]
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return _products([self.texts(node.left, at), self.texts(node.right, at)])
        if isinstance(node, ast.IfExp):
            return [text for branch in (node.body, node.orelse) for text in self.texts(branch, at) if text != "None"]
        if isinstance(node, ast.Call):
            return self._of_call(node, at)
        if isinstance(node, ast.Name):
            assigned = [text for value in self._assigned(node.id, at) for text in self.texts(value, at)]
            return assigned or [ANY]
        return [ANY]

    def _is_command(self, node: ast.expr) -> bool:
        return isinstance(node, ast.Call) and _name(node.func) in {*CALLS, *KNOWN_CALLS}

    def _of_call(self, node: ast.Call, at: ast.AST) -> list[str]:
        name = _name(node.func)
        if name == "command" and node.args:
            return [f"invoke {text}" for text in self.texts(node.args[0], at)]
        if name == "bootstrap_command":
            told = self.texts(node.args[0], at) if node.args else ["train"]
            return [f"python bootstrap.py invoke {text}" for text in told]
        if name == "strip" and isinstance(node.func, ast.Attribute):
            return self.texts(node.func.value, at)
        return [KNOWN_CALLS.get(name, ANY)]

    def _assigned(self, name: str, at: ast.AST) -> list[ast.expr]:
        for scope in (self._function(at), self.tree):
            found = [
                value
                for each in (ast.walk(scope) if scope else ())
                if isinstance(each, ast.Assign)
                for value in _values(each, name)
            ]
            if found:
                return found
        return []

    def _function(self, node: ast.AST) -> ast.FunctionDef | None:
        line = getattr(node, "lineno", 0)
        around = [each for each in self.functions if each.lineno <= line <= (each.end_lineno or 0)]
        return max(around, key=lambda each: each.lineno, default=None)


def _values(assignment: ast.Assign, name: str) -> Iterator[ast.expr]:
    """What one assignment gives to a name, also as a part of a tuple."""
    for target in assignment.targets:
        if isinstance(target, ast.Name) and target.id == name:
            yield assignment.value
        if isinstance(target, ast.Tuple) and isinstance(assignment.value, ast.Tuple):
            for part, value in zip(target.elts, assignment.value.elts, strict=False):
                if isinstance(part, ast.Name) and part.id == name:
                    yield value


def _products(parts: list[list[str]]) -> list[str]:
    texts = [""]
    for part in parts:
        texts = [text + more for text in texts for more in part]
    return texts


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
