"""Exceptions that end a command of the app with one sentence, and their exit codes."""

import os
import re
import shlex

FLAGS = "SNIPERFACE_FLAGS"  # the launcher sets it: names of the options that its user types as flags
EXIT_FAILED = 1
EXIT_WRONG_USE = 2
SENTENCE_CHARACTERS = 1000


def visible(text: str) -> str:
    """A text with escapes for what cannot be printed: control characters, and marks that reverse letters."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


class _Sentence(Exception):
    """One sentence. It may quote an untrusted file: control characters become escapes, a long text loses its middle."""

    def __init__(self, sentence: str) -> None:
        shown = visible(sentence)
        is_long = len(shown) > SENTENCE_CHARACTERS
        super().__init__(f"{shown[: SENTENCE_CHARACTERS // 2]} … {shown[-200:]}" if is_long else shown)


class WrongUse(_Sentence):
    """The request cannot work. The sentence names the option and a value that would work; exit code 2."""


class Failed(_Sentence):
    """The work cannot continue. Every process of the group raises this; exit code 1."""


def quoted(path: object, *, windows: bool = os.name == "nt") -> str:
    """A path as a shell of this computer reads it, for a printed command."""
    return f'"{path}"' if windows else shlex.quote(str(path))


def framed(sentence: str) -> str:
    """The sentence for stderr: started by the launcher, it looks like the launcher's errors and names its flags."""
    return sentence if FLAGS not in os.environ else f"error: {as_typed(sentence)}"


def as_typed(text: str) -> str:
    """The text with the options as its reader types them: started by the launcher, as flags."""
    names = os.environ.get(FLAGS)
    if names is None:
        return text
    options = "|".join(map(re.escape, names.split()))
    if "set" in names.split():  # the keys of the configuration follow this flag
        text = re.sub(r"\bgive (?=[a-z_]+\.[a-z_.]+=)", "give --set ", text)
    # Without a value, as in "align= has no effect", no space follows the flag.
    return re.sub(
        rf"(?<![\w.])({options})=(?=([\w/.'\"…~*{{<-])?)",
        lambda match: f"--{match[1].replace('_', '-')}" + (" " if match[2] else ""),
        text,
    )
