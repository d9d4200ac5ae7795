"""The command line: an Invoke program of our commands, which are made from their flags and end in order.

`python -m deploy`, the script `sniperface` and `invoke` all run it. It has no flag of Invoke's that means nothing here.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invoke.collection import Collection
from invoke.completion.complete import complete, print_completion_script
from invoke.config import Config
from invoke.context import Context
from invoke.exceptions import Exit, ParseError
from invoke.main import program as invoke
from invoke.parser.argument import Argument
from invoke.program import Program
from invoke.tasks import Task

from deploy.commands import command_line
from deploy.errors import DeployError, StepFailed, WrongUse, command, unknown
from deploy.specs.flags import JSON, Flag

if TYPE_CHECKING:
    from deploy.ui.screen import Screen


READER_GONE = 141  # as shells give it for SIGPIPE
SHELLS = ("bash", "fish", "zsh")
# The script `sniperface` sets it: the folder that relative paths on the command line start from.
STARTED_IN = "SNIPERFACE_STARTED_IN"


@contextlib.contextmanager
def telling(as_json: bool = False) -> Iterator[Screen]:
    """Turn our errors into one message and their exit code, without a traceback. Raises Exit with that code."""
    from deploy.commands.signals import Ended, ended_in_order
    from deploy.ui.screen import Screen

    screen = Screen(as_json)
    try:
        try:
            with ended_in_order():
                yield screen
        finally:
            sys.stdout.flush()  # here a reader that is gone ends in order; at the end of Python it would not
    except Ended as ended:
        print(ended.words, file=sys.stderr)
        raise
    except DeployError as error:
        screen.error(error)
        raise Exit(code=error.exit_code) from error
    except OSError as error:
        if is_reader_gone(error):  # it has read enough, as `| head` does
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
            raise Exit(code=READER_GONE) from error
        screen.error(StepFailed(str(error)))
        raise Exit(code=StepFailed.exit_code) from error
    except KeyboardInterrupt as error:
        print("interrupted", file=sys.stderr)
        raise Exit(code=130) from error


def is_reader_gone(error: OSError) -> bool:
    """Whether the reader of our output is gone. Windows calls a pipe without a reader an invalid argument."""
    if isinstance(error, BrokenPipeError):
        return True
    told = (error.errno, error.filename, getattr(error, "winerror", None))
    return sys.platform == "win32" and told == (errno.EINVAL, None, None)


class Command(Task):  # type: ignore[type-arg]
    """A task whose arguments are our flags.

    `body` gets a Screen, then the value of each flag by its parameter. It returns an exit code, a document for --json,
    or None.
    """

    def __init__(
        self, body: Callable[..., Any], name: str, flags: Sequence[Flag], group: str, examples: Sequence[str]
    ) -> None:
        super().__init__(body, name=name, positional=())
        self.flags = tuple(flags)
        self.group = group
        self.examples = tuple(examples)
        self.words: list[str] = []  # of the command line, for the flag with `words`

    def get_arguments(self, ignore_unknown_help: bool | None = None) -> list[Argument]:  # noqa: ARG002 - Invoke's
        return [_argument(flag) for flag in self.flags if not flag.words]

    def __call__(self, context: Context, **typed: Any) -> None:
        if context.config.run.dry:
            raise Exit("error: Invoke's own dry-run setting is not supported: use train --dry-run", code=2)
        given = {flag.parameter: self.words if flag.words else typed[_argument(flag).name or ""] for flag in self.flags}
        with telling(JSON in self.flags and bool(given.pop(JSON.parameter))) as screen:
            answer = self.body(screen, **given)
            code = answer if isinstance(answer, int) else 0
            if not isinstance(answer, int | None):
                screen.document(answer)
        if code:
            raise Exit(code=code)


def task(
    *flags: Flag, group: str, examples: Sequence[str] = (), name: str = ""
) -> Callable[[Callable[..., Any]], Command]:
    """Make a command of a function, which is named like it. `group` is its heading in the list of commands."""
    return lambda body: Command(body, name or body.__name__.replace("_", "-"), flags, group, examples)


class CommandLine(Program):
    """The program: checks every word, answers questions, and runs commands."""

    def __init__(self, project: Path, commands: Mapping[str, Command]) -> None:
        self.collection = self.scoped_collection = Collection(*commands.values())
        super().__init__(namespace=self.collection, name="sniperface", binary_names=["sniperface"])
        self.project = project
        self.commands = commands

    def take_over(self) -> None:
        """If Invoke has loaded the commands, run its command line by this program, and end the process."""
        if invoke.argv:
            self.run(["invoke", *command_line.without_search_root(invoke.argv[1:])])
            sys.exit(0)

    def start(self, words: Sequence[str]) -> None:
        """Run these words of a command line that Invoke has not started, and end the process."""
        if folder := os.environ.pop(STARTED_IN, None):
            os.chdir(folder)
        os.environ.setdefault("SNIPERFACE_INVOKE", "python -m deploy")
        self.run(["sniperface", *words])

    def run(self, argv: list[str] | None = None, exit: bool = True) -> None:
        """Run a command line. Wrong words raise WrongUse, which ends the process with one sentence and exit code 2."""
        self.normalize_argv(argv)
        words = self.argv[1:]
        try:
            with telling("--json" in words):
                flags = {name: each.flags for name, each in self.commands.items()}
                if command_line.check(words, flags):
                    print(command_line.version(self.project))
                    return
                if words and words[0].partition("=")[0] not in command_line.COMPLETION:
                    words, own = command_line.gathered(words, flags)
                    self.argv = [self.argv[0], *words]
                    for each in self.commands.values():
                        each.words = own
                try:
                    self._read()
                except ParseError as error:  # what the check lets through, and the parser does not
                    raise WrongUse(str(error)) from error
            self.execute()
        except Exit as end:
            if end.message:
                print(end.message, file=sys.stderr)
            if exit:
                sys.exit(end.code)

    def core_args(self) -> list[Argument]:
        """The flags that may stand before a command."""
        return [
            Argument(names=("help", "h"), optional=True, help="explain all commands, or one"),
            Argument(names=("list", "l"), kind=bool, default=False, help="list the commands"),
            Argument(names=("list-format", "F"), default="flat", help="json: list the commands as one JSON document"),
            Argument(names=("version", "V"), kind=bool, default=False, help="print version and commit"),
            Argument(names=("print-completion-script",), help="print what makes bash, zsh or fish complete commands"),
            Argument(names=("complete",), kind=bool, default=False, help="print completions of the words after --"),
        ]

    def _read(self) -> None:
        """Parse the words and answer questions, which end by `Exit`."""
        self.parse_core_args()
        if shell := self.args["print-completion-script"].value:
            if shell not in SHELLS:
                raise unknown("shell", shell, SHELLS)
            print_completion_script(shell=shell, names=self.binary_names)
            raise Exit
        self.config = Config(lazy=True)  # no file of Invoke's changes what a command does
        self.config.merge()
        self.parse_tasks()
        if self.args.complete.value:
            names = [*self.binary_names, "invoke", "inv"]
            complete(names, self.core, self.initial_context, self.collection, self._make_parser())
        if isinstance(asked := self.args.help.value, str):
            self.print_task_help(asked)
        elif self.args["list-format"].value == "json":
            print(json.dumps(self.collection.serialized()))
        elif self.args["list-format"].value != "flat":
            raise unknown("--list-format", self.args["list-format"].value, ("flat", "json"))
        elif asked or self.args.list.value or not self.tasks:
            self.print_help()
        else:
            return
        raise Exit

    def print_help(self) -> None:
        """Print all commands, grouped by purpose."""
        print(f"Usage: {command('COMMAND [flags]')}\n")
        for group in dict.fromkeys(each.group for each in self.commands.values()):
            print(f"{group}:\n")
            self.print_columns([(name, one_line(each)) for name, each in self.commands.items() if each.group == group])
        print(f"The flags of a command, with examples: {command('COMMAND --help')}\n")

    def print_task_help(self, name: str) -> None:
        """Print what one command does, its flags by group, and examples."""
        asked = self.commands[name]
        print(f"Usage: {command(name)}{_usage(asked.flags)}\n")
        print(f"{one_line(asked)}\n")
        for group in dict.fromkeys(flag.group for flag in asked.flags):
            print(f"{group}:\n")
            shown = [(" ".join(filter(None, [flag.typed, flag.value])), flag) for flag in asked.flags]
            self.print_columns([(typed, flag.help) for typed, flag in shown if flag.group == group])
        if asked.examples:
            print("Examples:\n")
            print("\n".join(f"  {command(example)}" for example in asked.examples), end="\n\n")


def one_line(of: object) -> str:
    """The docstring of a command as one paragraph."""
    return " ".join((of.__doc__ or "").split())


def _usage(flags: Sequence[Flag]) -> str:
    words = [flag for flag in flags if flag.words]
    shown = ["[flags]"] if len(flags) > len(words) else []
    return "".join(f" {each}" for each in [*shown, *(flag.typed for flag in words)])


def _argument(flag: Flag) -> Argument:
    kind = bool if flag.value is None else list if flag.repeats else str
    default: Any = {bool: False, list: []}.get(kind, flag.default)
    attribute = flag.name.replace("-", "_")
    return Argument(
        names=(flag.name,),
        kind=kind,
        default=default,
        help=flag.help,
        attr_name=attribute if attribute != flag.name else None,
    )
