"""Write from the code what documents it: commands.md, settings.md, targets.md, and the schema of targets for editors.

    python bootstrap.py python docs/make.py

The meaning of a setting is the comment beside its field, see deploy/specs/comments.py.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from deploy.specs.comments import Setting, settings_of
from deploy.specs.target_schema import FILE, target_schema

DOCS = Path(__file__).resolve().parent
PROJECT = DOCS.parent
MADE = "<!-- Made by docs/make.py. Change the code, then run it again. -->\n"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    head = list(head)
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
    yield ""


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def commands() -> Iterator[str]:
    """The page of the commands, from the flags that `--help` shows."""
    import tasks
    from deploy.commands.program import one_line
    from deploy.specs import flags

    def rows(some: Iterable[flags.Flag]) -> Iterator[tuple[str, str]]:
        return ((code(" ".join(filter(None, [flag.typed, flag.value]))), flag.help) for flag in some)

    menu, common = tasks.COMMAND_LINE.commands, (flags.ON, flags.RUN, flags.JSON)
    yield "# Commands\n"
    yield MADE
    yield "`invoke COMMAND --help` prints the same. How to start a command: [command-line.md](command-line.md).\n"
    yield "Many commands take these common flags:\n"
    yield from table(("flag", "meaning"), rows(common))
    for group in dict.fromkeys(each.group for each in menu.values()):
        yield f"## {group}\n"
        for name, each in menu.items():
            if each.group != group:
                continue
            yield f"### `invoke {name}`\n"
            yield f"{one_line(each)}\n"
            if each.examples:
                yield "```"
                yield from (f"invoke {example}" for example in each.examples)
                yield "```\n"
            if also := [code(flag.typed) for flag in each.flags if flag in common]:
                yield f"Common flags: {', '.join(also)}.\n"
            if own := [flag for flag in each.flags if flag not in common]:
                yield from table(("flag", "meaning"), rows(own))


def keys(kind: type, told: Mapping[str, Sequence[Setting]], prefix: str = "") -> Iterator[str]:
    """The tables of a dataclass and of those inside, with the full key of each setting."""
    example = kind()
    inner = [each.name for each in fields(kind) if is_dataclass(getattr(example, each.name))]
    rows: list[tuple[str, str, str]] = []
    for each in told[kind.__name__]:
        if each.name in inner:
            continue
        if each.heading:
            rows.append(("", "", f"**{each.heading}**"))
        rows.append((code(prefix + each.name), code(json.dumps(getattr(example, each.name))), each.meaning))
    if rows:
        yield f"## `{prefix.rstrip('.')}`\n" if prefix else "## No group\n"
        if kind.__doc__ and not kind.__doc__.startswith(f"{kind.__name__}("):
            yield f"{kind.__doc__}\n"
        yield from table(("key", "default", "meaning"), rows)
    for name in inner:
        yield from keys(type(getattr(example, name)), told, f"{prefix}{name}.")


def named(group: str, names: Iterable[str]) -> str:
    """The names of a group, but for those of published experiments, which are many."""
    names = list(names)
    folder = PROJECT / "conf" / group
    own = [name for name in names if "published/" not in (folder / f"{name}.yaml").read_text(encoding="utf-8")]
    others = f", and the {len(names) - len(own)} [published ones](from-arcface-torch.md)" if own != names else ""
    return f"{', '.join(map(code, own))}{others}"


def training() -> Iterator[str]:
    """The page of the configuration of the app, from its schema."""
    from app.config.compose import groups
    from app.config.schema import Config

    yield "# Settings of the training\n"
    yield MADE
    yield "Give them with `invoke train --set KEY=VALUE`, or to the [trainer](trainer.md) as `KEY=VALUE`."
    yield "`python -m app.train --cfg job KEY=VALUE` prints all settings of a run.\n"
    yield "A group is a key as well:"
    yield "`--set experiment=sniperface` takes the values of `conf/experiment/sniperface.yaml`.\n"
    yield from table(("group", "names"), ((code(group), named(group, names)) for group, names in groups().items()))
    yield from keys(Config, settings_of(PROJECT / "app" / "config" / "schema.py"))


def targets() -> Iterator[str]:
    """The page of the keys of conf/deploy, from the dataclasses that they fill."""
    from deploy.specs import settings, settings_file

    def rows(kind: type[Any]) -> Iterator[tuple[str, str, str]]:
        for each in settings_of(Path(inspect.getfile(kind)))[kind.__name__]:
            if each.name in ("name", "provider", "options"):
                continue
            default = next(one.default for one in fields(kind) if one.name == each.name)
            shown = {"()": "[]", "None": "null"}.get(str(default), str(default))
            yield (
                code(each.name),
                code(shown if isinstance(default, (str, int, float, tuple, type(None))) else ""),
                each.meaning,
            )

    yield "# Targets\n"
    yield MADE
    yield "A target is a file in `conf/deploy`: `--on NAME` uses `conf/deploy/NAME.yaml`. Its keys are those of every"
    yield "target and those of its `provider`. Each key has an environment variable that wins over the file, such as"
    yield f"`{settings_file.ENVIRONMENT_PREFIX}STAGE_TO` for `stage_to`. `--gpus` and `--spot` win over both."
    yield "How to use each kind: [machines.md](machines.md).\n"
    yield "## Every target\n"
    yield from table(
        ("key", "default", "meaning"),
        [("`provider`", "", ", ".join(map(code, settings.OPTIONS))), *rows(settings.Target)],
    )
    for provider, kind in settings.OPTIONS.items():
        yield f"## `provider: {provider}`\n"
        yield f"{kind.__doc__}\n"
        if made := list(rows(kind)):
            yield from table(("key", "default", "meaning"), made)


PAGES = {"commands.md": commands, "settings.md": training, "targets.md": targets}


def page(name: str) -> str:
    return "\n".join(PAGES[name]()).rstrip() + "\n"


if __name__ == "__main__":
    for name in PAGES:
        (DOCS / name).write_text(page(name), encoding="utf-8", newline="\n")
    schema = json.dumps(target_schema(), indent=1) + "\n"
    (PROJECT / "conf" / "deploy" / FILE).write_text(schema, encoding="utf-8", newline="\n")
