"""Check file names from a machine, and where the files may lie on the laptop."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePath, PureWindowsPath

from deploy.border.values import shown
from deploy.errors import BadAnswer, WrongUse

NAME_CHARACTERS = 120
PICTURE = re.compile(r"[^/\\]{1,100}\.png")
CURVES = re.compile(r"events\.out\.tfevents\.[^/\\]{1,100}")  # of TensorBoard
RESULT = re.compile(r"[^/\\]{1,100}\.(npy|json|png)")  # of `mine` and `evaluate`

_FORBIDDEN = set('<>:"/\\|?*')
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])", re.IGNORECASE)


class Name(str):
    """A path component that is a plain file name on Windows, macOS and Linux. Raises BadAnswer otherwise."""

    __slots__ = ()

    def __new__(cls, value: object, what: str = "the machine", *, like: re.Pattern[str] | None = None) -> Name:
        if isinstance(value, Name) and like is None:
            return value
        why = _why_no_name(value)
        if why is None and like is not None and not like.fullmatch(str(value)):
            why = "does not have the expected form"
        if why:
            raise BadAnswer(f"{what}: the file name {shown(value)} {why}")
        return super().__new__(cls, str(value))


def _why_no_name(value: object) -> str | None:
    if not isinstance(value, str):
        return "is not text"
    reasons = {
        "is empty or too long": not 0 < len(value) <= NAME_CHARACTERS or len(value.encode("utf-8", "replace")) > 240,
        "has a separator, a drive or a character that Windows forbids": bool(_FORBIDDEN & set(value)),
        "has characters that cannot be printed": not value.isprintable(),
        "begins with a dot, a dash or a blank": value[:1] in {".", "-", " ", "~"},
        "ends with a dot or a blank": value[-1:] in {".", " "},
        "is a reserved device name on Windows": _is_device(value),
    }
    return next((why for why, holds in reasons.items() if holds), None)


@dataclass(frozen=True)
class Place:
    """Where a file of a machine is stored: a path below `root`, which the user or the project chose."""

    root: Path
    names: tuple[Name, ...]

    @property
    def path(self) -> Path:
        """Return the path, checked at each access. Raises WrongUse for a symbolic link or a path outside `root`."""
        path = self.root
        for name in self.names:
            path = path / name
            if path.is_symlink():
                raise WrongUse(f"{path} is a symbolic link: remove it; a machine's files must stay in {self.root}")
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise WrongUse(f"{path} resolves to a path outside {self.root}: remove the link or junction in it")
        return path


def place(root: Path, *names: str, what: str = "the machine") -> Place:
    """Return the place of a file below `root`. Checks every name."""
    return Place(root, tuple(Name(name, what) for name in names))


def impossible(path: PurePath) -> str | None:
    """PURE: return the part of an absolute path that a file of Windows cannot have; None elsewhere, and without one.

    Windows drops dots and blanks at the end of a name, and writes `model:1.pt` into a hidden stream of `model`.
    """
    if not isinstance(path, PureWindowsPath):
        return None
    wrong = (each for each in path.parts[1:] if each != ".." and (_FORBIDDEN & set(each) or each[-1] in ". "))
    return next(wrong, None) or next((each for each in path.parts[1:] if _is_device(each)), None)


def _is_device(name: str) -> bool:
    return bool(_RESERVED.fullmatch(name.split(".")[0].rstrip(" ")))


def chosen(path: Path) -> Place:
    """Return the place of a path that the user typed, such as --to. Raises WrongUse if Windows cannot have it."""
    wrong = impossible(path)
    if wrong:
        raise WrongUse(f"{path} cannot be a file on Windows: give a plain name in place of '{wrong}', such as model.pt")
    return Place(path.parent, (str.__new__(Name, path.name),))
