"""Check the command line strictly, before a command runs.

Invoke has flags (`--dry`, `--echo` …) that have no effect here, and accepts them after a command's name, too. So every
word must be known to this project; any other word ends with exit code 2.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from deploy.errors import WrongUse, command, unknown
from deploy.specs.flags import REST, WORDS, Flag
from deploy.specs.settings import OPTIONS

# May come before a command, with a value. Only Invoke knows the second kind: where it looks for this project.
BEFORE = ("--list-format", "-F")
SEARCH_ROOT = ("--search-root", "-r")
HELP, LIST, VERSION = ("--help", "-h"), ("--list", "-l"), ("--version", "-V")
ASKS = (*HELP, *LIST, *VERSION)
COMPLETION_SCRIPT = "--print-completion-script"
REST_BEGINS = "--"
COMPLETION = ("--complete", COMPLETION_SCRIPT)  # these end without running a command
# What users may type -> the flag they mean. Similarity of spelling does not find these.
MEANT = {"--dry": "--dry-run", "-R": "--dry-run", "-n": "--dry-run", "--follow": "--watch", "-f": "--follow"}
FEW = 8  # so many flags are listed where none is like the wrong one
SAY_WHAT_FITS = ("--base", "--gpus", "--host", "--name")  # their commands answer an empty value with one that fits
PATH_AND_QUOTE = re.compile(r'((?:[A-Za-z]:[\\/]|\.{0,2}\\)[^"]*)"')  # Windows has no such path

Commands = Mapping[str, Sequence[Flag]]


def check(words: Sequence[str], commands: Commands) -> bool:
    """Check a command line without the program's name. Returns whether it asks for the version.

    Raises WrongUse for an unknown word, and suggests the nearest known one.
    """
    if words and words[0].partition("=")[0] in COMPLETION:
        if words == [COMPLETION_SCRIPT]:
            raise _missing(COMPLETION_SCRIPT, ": give bash, fish or zsh")
        return False
    rest = _before(words, commands)
    if rest is None:
        return True
    return bool(rest) and _command(rest[0], rest[1:], commands)


def gathered(words: Sequence[str], commands: Commands) -> tuple[list[str], list[str]]:
    """Split a checked command line into the words that Invoke parses, and those that a command takes without a flag."""
    start = len(words) - len(_before(words, commands) or ())
    kind = _takes_words(commands[words[start]]) if start < len(words) else ""
    if kind == REST:
        end = words.index(REST_BEGINS) if REST_BEGINS in words else len(words)
        return list(words[:end]), list(words[end + 1 :])
    parsed, own, waiting = list(words[: start + 1]), [], False
    flags = {flag.typed: flag for flag in commands[words[start]]} if kind else {}
    for word in words[start + 1 :]:
        if kind and not waiting and not word.startswith("-"):
            own.append(word)
            continue
        waiting = not waiting and word in flags and flags[word].value is not None
        parsed.append(word)
    return parsed, own


def _takes_words(flags: Sequence[Flag]) -> str:
    return next((flag.words for flag in flags if flag.words), "")


def without_search_root(words: Sequence[str]) -> list[str]:
    """Leave out Invoke's flag that says where the project is, if it stands before a command."""
    rest = list(words)
    if rest and rest[0].partition("=")[0] in SEARCH_ROOT:
        del rest[: 1 if "=" in rest[0] else 2]
    return rest


def _before(words: Sequence[str], commands: Commands) -> Sequence[str] | None:
    """The words from the command's name on; None if the version is requested."""
    index = 0
    while index < len(words) and words[index].startswith("-"):
        name, equals, _ = words[index].partition("=")
        index += 1
        if name in ASKS and equals:
            raise WrongUse(f"{name} takes no value: write {name} alone")
        if name in VERSION:
            return None
        if name in HELP:
            for asked in words[index : index + 1]:
                _known(asked, commands)
            if len(words) > index + 1:
                raise WrongUse(f"--help explains one command: leave out '{words[index + 1]}'")
            return ()
        if name in LIST:
            continue
        if name not in BEFORE:
            known = [flag.typed for flags in commands.values() for flag in flags if not flag.words]
            _refuse(name, "", {*BEFORE, *LIST, *known})
        if not equals:
            if index == len(words):
                raise WrongUse(f"{name} needs a value")
            index += 1
    return words[index:]


def _command(name: str, words: Sequence[str], commands: Commands) -> bool:
    flags = _known(name, commands)
    kind = _takes_words(commands[name])
    seen: set[str] = set()
    waiting = ""
    version = False
    for index, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if waiting:
            _value(waiting, word, flags)
            _refuse_value(waiting, word)
            waiting = ""
        elif flag in ASKS and not equals:
            version = version or flag in VERSION
        elif word == REST_BEGINS and kind == REST:
            return version
        elif not word.startswith("-"):
            if kind == WORDS and word != "#":
                continue
            _refuse_stray(name, word, commands)
            return _command(word, words[index + 1 :], commands) or version
        elif flag not in flags:
            _refuse(flag, name, flags)
        else:
            if flag in seen and not flags[flag].repeats:
                raise WrongUse(f"{flag} is given twice: give it once")
            seen.add(flag)
            if equals and not flags[flag].value:
                raise WrongUse(f"{flag} takes no value: write {flag} alone, or leave it out")
            if equals:
                _refuse_value(flag, value)
            waiting = flag if flags[flag].value and not equals else ""
    if waiting:
        raise _missing(waiting)
    return version


def _known(name: str, commands: Commands) -> Mapping[str, Flag]:
    """The command's flags, as they are typed."""
    if name not in commands:
        raise unknown("command", name, commands)
    return {flag.typed: flag for flag in commands[name] if not flag.words}


def _value(flag: str, word: str, flags: Mapping[str, Flag]) -> None:
    """Raise WrongUse for a flag in place of a value. A negative number, or a text with blanks, is a value."""
    if not word.startswith("-"):
        return
    is_flag = word.partition("=")[0] in (*flags, *ASKS)
    if not is_flag and (" " in word or re.fullmatch(r"-\d+(\.\d+)?", word)):
        return
    raise _missing(flag, f"; a value that begins with - is written {flag}={word}")


def _refuse_value(flag: str, value: str) -> None:
    """Raise WrongUse for a value that the user's shell made of what was typed."""
    if not value.strip() and flag not in SAY_WHAT_FITS:  # an unset variable: it would count as a flag that is left out
        raise WrongUse(f"{flag} is empty: give a value, or leave {flag} out")
    # cmd and PowerShell pass "C:\my faces\" so that a program reads C:\my faces" and all words up to the next quote.
    swallowed = PATH_AND_QUOTE.match(value)
    if swallowed:
        raise WrongUse(f'{flag} "{swallowed[1]}\\" ends with \\", which is no closing quote: write "{swallowed[1]}"')


def _missing(flag: str, more: str = "") -> WrongUse:
    return WrongUse(f"{flag} needs a value, and none was given{more}")


def _refuse_stray(name: str, word: str, commands: Commands) -> None:
    """Raise WrongUse for a word that is neither a flag nor a value, unless it is a command that may follow `name`."""
    if word.startswith("#"):
        raise WrongUse(f"'{word}' begins a comment, which zsh and cmd pass on: leave out all words from it on")
    if _takes_words(commands[name]) == REST:
        raise WrongUse(f"'{word}' is not a flag of {name}: write -- before the command, {name} -- {word}")
    if word not in commands:
        flags = _known(name, commands)
        near = difflib.get_close_matches(f"--{word}", flags, n=1, cutoff=0.6)
        if "--on" in flags and word in [*OPTIONS]:  # a shipped target is named after its provider
            near = [f"--on {word}"]
        hint = f"did you mean {near[0]}?" if near else f"see {command(f'{name} --help')}"
        raise WrongUse(f"'{word}' is not a flag of {name}: {hint}")
    if _takes_words(commands[word]):
        raise WrongUse(f"{word} cannot follow another command: give {command(word)} alone")


def _refuse(flag: str, name: str, right: Iterable[str]) -> NoReturn:
    choices = sorted({*right, "--help", "--version"})
    meant = MEANT.get(flag)
    named = {each.lstrip("-"): each for each in choices}  # the dashes would make any two flags alike
    alike = difflib.get_close_matches(flag.lstrip("-"), named, n=1, cutoff=0.7)
    near = [meant] if meant in choices else [named[each] for each in alike]
    if near == ["--yes"] and not flag.startswith("--y"):  # a guess must not agree to anything
        near = []
    of = f" of {name}" if name else " before a command"
    see = command(f"{name} --help" if name else "--list")
    if near:
        raise WrongUse(f"unknown flag {flag}{of}: did you mean {near[0]}? All of them: {see}")
    few = f"there are {', '.join(choices)}: " if len(choices) <= FEW else ""
    raise WrongUse(f"unknown flag {flag}{of}: {few}see {see}")


def version(project: Path) -> str:
    """Name, version and, in a git checkout, the commit."""
    from deploy.shell import LocalShell

    told = re.search(r'^version = "([^"]+)"', (project / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    text = f"sniperface {told.group(1) if told else 'unknown'}"
    shell = LocalShell()
    if shell.which("git") is None or not (project / ".git").exists():
        return text
    commit = shell.run(["git", "rev-parse", "--short", "HEAD"], cwd=project, check=False).text.strip()
    return f"{text} ({commit})" if commit else text
