"""Follow what a machine or a provider says through the laptop's code, by its syntax: paths and prints that it reaches.

A value is a stranger's if it comes from a call in SOURCES, or from one that does: by assignment, loop, item, f-string,
and by the arguments and results of functions whose name is unique in deploy/. A call in TYPED ends it: that is a check
of the border, or a number. Not seen: values in attributes of objects, in closures, in functions of a name that is not
unique, and whatever getattr, eval or a callback of a library passes on.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property

# Calls that return what a machine, a provider or a stranger's file says, as text or as JSON. `*.` is any object.
SOURCES = re.compile(
    r"(.*\.)?(call|calls|attempts|listdir|json|_json|_call|_graphql|graphql|data_of|loads?|safe_load)"
    r"|(.*\.|_)?(shell|link|there|files|machine|reader)\.(read|lines|stream|run|output|tail|text|hashes|size)"
    r"|border\.(document|read_document|frame|event|read_events|names|strings|text|path_text|standing|restorable"
    r"|checkpoint_note|staged_images|read_settings|read_history)"
    r"|(read_document|read_json|read_settings|read_history|read_events)"
)
# Functions whose result may become a component of a path: checked names, numbers, hashes.
TYPED = {
    "Name", "place", "chosen", "identifier", "user_name", "number", "size", "whole", "sha256", "hashes", "address",
    "interface", "snapshot_state", "dollars", "progress", "int", "float", "bool", "len", "sum", "round", "isinstance",
    "any", "all", "hash", "ord", "slug", "hexdigest", "object_id", "is_file", "exists", "fullmatch",
    "startswith", "endswith",
}  # fmt: skip
SHOWN = {"visible", "visible_log", "shown", "cut"}  # what may be printed
JOINS = {
    "Path", "PurePath", "PurePosixPath", "PureWindowsPath", "joinpath", "with_name", "with_suffix", "with_stem", "open",
    "home",
}  # fmt: skip
PRINTS = {"print", "sys.stdout.write", "sys.stderr.write", "self.console.print", "self.console.file.write"}


@dataclass(frozen=True)
class Found:
    file: str
    line: int
    words: str
    kind: str  # path or print

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.words}"


@dataclass
class Function:
    file: str
    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Module
    theirs: set[str] = field(default_factory=set)  # local names whose values are a stranger's
    returns: bool = False

    @cached_property
    def parameters(self) -> list[str]:
        if isinstance(self.node, ast.Module):
            return []
        told = self.node.args
        return [each.arg for each in (*told.posonlyargs, *told.args) if each.arg not in ("self", "cls")]

    @cached_property
    def own(self) -> list[ast.AST]:
        """All nodes of this function, without those of functions inside it."""
        found: list[ast.AST] = []
        waiting: list[ast.AST] = list(ast.iter_child_nodes(self.node))
        while waiting:
            each = waiting.pop()
            found.append(each)
            if not isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
                waiting += ast.iter_child_nodes(each)
        return found


class Code:
    """All functions of some files, given as text by name."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self.functions: list[Function] = []
        for file, text in files.items():
            tree = ast.parse(text, file)
            self.functions.append(Function(file, tree))
            self.functions += [
                Function(file, each)
                for each in ast.walk(tree)
                if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
            ]
        named: dict[str, list[Function]] = {}
        for one in self.functions:
            if not isinstance(one.node, ast.Module):
                named.setdefault(one.node.name, []).append(one)
        self.unique = {name: each[0] for name, each in named.items() if len(each) == 1}
        self.callers: dict[str, list[Function]] = {}
        for one in self.functions:
            for name in {_called(each) for each in one.own if isinstance(each, ast.Call)} & set(self.unique):
                self.callers.setdefault(name, []).append(one)
        waiting = list(self.functions)
        while waiting:
            waiting += self._spread(waiting.pop())

    def found(self) -> list[Found]:
        return [each for one in self.functions for each in self._sinks(one)]

    def _spread(self, one: Function) -> list[Function]:
        """Pass on what is known so far. Returns the functions that this concerns."""
        before, concerned = (len(one.theirs), one.returns), []
        for node in one.own:
            if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.NamedExpr):
                if self._is_theirs(one, node.value):
                    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                    one.theirs |= {name for each in targets for name in _names(each)}
            elif isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
                if self._is_theirs(one, node.iter):
                    one.theirs |= set(_names(node.target))
            elif isinstance(node, ast.withitem):
                if node.optional_vars and self._is_theirs(one, node.context_expr):
                    one.theirs |= set(_names(node.optional_vars))
            elif isinstance(node, ast.Return | ast.Yield | ast.YieldFrom):
                one.returns |= self._is_theirs(one, node.value)
            elif isinstance(node, ast.Call):
                concerned += self._pass_arguments(one, node)
        if len(one.theirs) != before[0]:
            concerned.append(one)
        if one.returns != before[1] and not isinstance(one.node, ast.Module):
            concerned += self.callers.get(one.node.name, []) if one.node.name in self.unique else []
        return concerned

    def _pass_arguments(self, one: Function, node: ast.Call) -> list[Function]:
        called = self.unique.get(_called(node))
        if called is None or _called(node) in TYPED:
            return []
        given = dict(zip(called.parameters, node.args, strict=False))
        given |= {each.arg: each.value for each in node.keywords if each.arg}
        given = {name: value for name, value in given.items() if name not in called.theirs}
        more = {name for name, value in given.items() if self._is_theirs(one, value)}
        called.theirs |= more
        return [called] if more else []

    def _is_theirs(self, one: Function, node: ast.AST | None) -> bool:
        if node is None or isinstance(node, ast.Constant | ast.Compare | ast.Lambda | ast.Attribute):
            return False
        if isinstance(node, ast.Name):
            return node.id in one.theirs
        if isinstance(node, ast.Subscript):
            return self._is_theirs(one, node.value)
        if isinstance(node, ast.IfExp):
            return self._is_theirs(one, node.body) or self._is_theirs(one, node.orelse)
        if isinstance(node, ast.GeneratorExp | ast.ListComp | ast.SetComp):
            return self._is_theirs(one, node.elt)
        if isinstance(node, ast.DictComp):
            return self._is_theirs(one, node.key) or self._is_theirs(one, node.value)
        if isinstance(node, ast.Call):
            name, words = _called(node), _words(node.func)
            if name in TYPED:
                return False
            if SOURCES.fullmatch(words):
                return True
            if name in self.unique:
                return self.unique[name].returns
            inside = [node.func.value] if isinstance(node.func, ast.Attribute) else []
            return any(self._is_theirs(one, each) for each in (*inside, *node.args, *[k.value for k in node.keywords]))
        return any(self._is_theirs(one, each) for each in ast.iter_child_nodes(node))

    def _sinks(self, one: Function) -> Iterator[Found]:
        for node in one.own:
            kind = ""
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
                kind = "path" if self._is_theirs(one, node.right) else ""
            elif isinstance(node, ast.Call):
                told = [*node.args, *[each.value for each in node.keywords]]
                if _called(node) in JOINS and any(self._is_theirs(one, each) for each in told):
                    kind = "path"
                elif _words(node.func) in PRINTS and any(self._is_raw(one, each) for each in told):
                    kind = "print"
            if kind:
                yield Found(one.file, getattr(node, "lineno", 0), ast.unparse(node), kind)

    def _is_raw(self, one: Function, node: ast.expr) -> bool:
        return not (isinstance(node, ast.Call) and _called(node) in SHOWN) and self._is_theirs(one, node)


@cache
def _words(node: ast.expr) -> str:
    return ast.unparse(node)


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _names(target: ast.AST) -> Iterator[str]:
    """Names that a target sets; of `a.b` and `a[b]`, a."""
    if isinstance(target, ast.Name):
        yield target.id
    elif isinstance(target, ast.Tuple | ast.List):
        for each in target.elts:
            yield from _names(each)
    elif isinstance(target, ast.Starred | ast.Subscript):
        yield from _names(target.value)
