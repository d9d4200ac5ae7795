"""Flags that would be ignored are refused before anything starts.

Invoke, which runs tasks.py, accepts its own flags after a task's name, too: `--dry` would echo shell commands, of which
there are none here, and start a real job. So the command line is parsed a second time, without them, before Invoke
sees the tasks.
"""

from __future__ import annotations

import copy
import difflib
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from invoke.collection import Collection
from invoke.exceptions import Exit, ParseError
from invoke.parser import Parser
from invoke.parser.context import ParserContext
from invoke.program import Program

# Of Invoke's own flags, those that mean something here; the first ones print and end.
PRINTING = {"complete", "help", "list", "print-completion-script", "version"}
HONOURED = PRINTING | {"collection", "list-depth", "list-format", "search-root"}
UNKNOWN = re.compile(r"No idea what '(.*)' is!")
NO_VALUE = re.compile(r"Flag <Argument: ([\w-]+)\b.*needed value")
GIT_LIMIT_S = 5


def check(argv: Sequence[str], tasks: ModuleType) -> None:
    """Raises Exit with code 2 for a flag that would be ignored, with code 0 after the version was printed.

    Words of another program than Invoke are none of its flags, and are left alone.
    """
    if not _is_invoke(argv[0]):
        return
    program = Program()
    own = ParserContext(args=program.core_args() + program.task_args())
    try:
        core = Parser(initial=own, ignore_unknown=True).parse_argv(list(argv[1:]))
    except ParseError:
        return  # Invoke says it, and starts nothing
    given = {name for name, arg in core[0].args.items() if arg.got_value}
    if given & PRINTING:
        return
    ignored = sorted(given - HONOURED)
    if ignored:
        raise Exit(f"error: --{ignored[0]} would be ignored, so nothing was started: leave it out", code=2)
    words = list(core.unparsed)
    # A task's help ends before anything starts, whatever else is said; so does the version.
    if {"-h", "--help"} & {*words}:
        return
    # Of a copy: a task gives its help texts to the first who asks for its flags.
    contexts = copy.deepcopy(Collection.from_module(tasks)).to_contexts()
    if {"-V", "--version"} & {*words}:
        print(version(Path(str(tasks.__file__)).parent))
        raise Exit(code=0)
    try:
        Parser(contexts=contexts).parse_argv(words)
    except ParseError as error:
        raise Exit(f"error: {sentence(error, [str(each.name) for each in contexts])}", code=2) from error


def version(project: Path) -> str:
    """This program's version, and the commit where it is a checkout."""
    said = re.search(r'^version = "(.*)"', (project / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    argv = ["git", "-C", str(project), "rev-parse", "--short", "HEAD"]
    try:
        commit = subprocess.run(argv, capture_output=True, text=True, timeout=GIT_LIMIT_S, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = ""
    return f"sniperface {said[1] if said else 'of an unknown version'}{f' ({commit})' if commit else ''}"


def _is_invoke(program: str) -> bool:
    path = Path(program)
    return path.stem in ("invoke", "inv") or (path.stem == "__main__" and path.parent.name == "invoke")


def sentence(error: ParseError, commands: Sequence[str]) -> str:
    """What is wrong with a command line, and the nearest right word."""
    valueless = NO_VALUE.match(str(error))
    if valueless:
        return f"--{valueless[1]} needs a value, and nothing was started"
    unknown = UNKNOWN.match(str(error))
    if unknown is None:
        return str(error)
    word, context = unknown[1], error.context
    if not word.startswith("-") or context is None:
        near = nearest(word, commands)
        return f"there is no command {word}: {f'did you mean {near}?' if near else '`invoke --list` lists them'}"
    near = nearest(word, [*context.flags, *context.inverse_flags])
    hint = f"did you mean {near}?" if near else f"`invoke {context.name} --help` lists its flags"
    return f"{word} is no flag of {context.name}, and nothing was started: {hint}"


def nearest(word: str, known: Sequence[str]) -> str | None:
    """The one that begins so, or the one that is most alike; a single letter is like nothing."""
    beginning = [each for each in sorted(known) if len(word) > 2 and each.startswith(word)]
    alike = difflib.get_close_matches(word, known, n=1) if len(word.strip("-")) > 1 else []
    return next(iter([*beginning, *alike]), None)
