"""Commands as Invoke tasks: made from their flags, they run a function with what the user typed and end in order."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.parser.argument import Argument
from invoke.tasks import Task

from deploy.errors import DeployError, StepFailed
from deploy.specs.flags import JSON, Flag

if TYPE_CHECKING:
    from deploy.ui.screen import Screen


@contextlib.contextmanager
def telling(as_json: bool = False) -> Iterator[Screen]:
    """Turn our errors into one message and their exit code, without a traceback."""
    from deploy.commands.signals import Ended, ended_in_order
    from deploy.ui.screen import Screen

    screen = Screen(as_json)
    try:
        with ended_in_order():
            yield screen
    except Ended as ended:
        print(ended.words, file=sys.stderr)
        raise
    except DeployError as error:
        screen.error(error)
        raise Exit(code=error.exit_code) from error
    except OSError as error:
        screen.error(StepFailed(str(error)))
        raise Exit(code=StepFailed.exit_code) from error
    except KeyboardInterrupt as error:
        print("interrupted", file=sys.stderr)
        raise Exit(code=130) from error


class Command(Task):  # type: ignore[type-arg]
    """A task whose arguments are our flags.

    `body` gets a Screen, then the value of each flag by its parameter. It returns an exit code, a document for --json,
    or None.
    """

    def __init__(self, body: Callable[..., Any], name: str, flags: Sequence[Flag]) -> None:
        super().__init__(body, name=name, positional=())
        self.flags = tuple(flags)

    def get_arguments(self, ignore_unknown_help: bool | None = None) -> list[Argument]:  # noqa: ARG002 - Invoke's
        return [_argument(flag) for flag in self.flags]

    def __call__(self, context: Context, **typed: Any) -> None:
        if context.config.run.dry:
            raise Exit("error: Invoke's own dry-run setting is not supported: use train --dry-run", code=2)
        given = {flag.parameter: typed[_argument(flag).name or ""] for flag in self.flags}
        with telling(JSON in self.flags and given.pop(JSON.parameter)) as screen:
            answer = self.body(screen, **given)
            code = answer if isinstance(answer, int) else 0
            if not isinstance(answer, int | None):
                screen.document(answer)
        if code:
            raise Exit(code=code)


def task(*flags: Flag) -> Callable[[Callable[..., Any]], Command]:
    """Make a command of a function, which is named like it."""
    return lambda body: Command(body, body.__name__.replace("_", "-"), flags)


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
