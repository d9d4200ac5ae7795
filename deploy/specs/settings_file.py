"""Read the keys and values of a settings file, and convert each value to the type of its key."""

from __future__ import annotations

import copy
import functools
import io
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from deploy.border.text_files import NotText, read_text
from deploy.errors import WrongUse

ENVIRONMENT_PREFIX = "SNIPERFACE_"  # each key of a target's file has a variable: SNIPERFACE_STAGE_TO, ...
MAX_PORT = 65535
QUOTED_PATH = re.compile(r'"[A-Za-z]:\\')  # in double quotes, \ begins an escape of YAML
WRITE_PATHS = "write a Windows path without quotes, or with / for each \\"


@dataclass(frozen=True)
class Source:
    """Where the value of a key is from: the environment if the key's variable is set, else the target's file."""

    file: str  # its path in messages
    environment: Mapping[str, str]

    def variables(self, *keys: str) -> dict[str, str]:
        """The values that the environment has for these keys."""
        told = {key: self.environment.get(ENVIRONMENT_PREFIX + key.upper()) for key in keys}
        return {key: value for key, value in told.items() if value}

    def of(self, key: str) -> str:
        """The file or the variable of one key, for messages."""
        return f"the environment variable {ENVIRONMENT_PREFIX}{key.upper()}" if self.variables(key) else self.file

    def of_all(self, keys: Iterable[str]) -> str:
        """The file with the variables of several keys, for messages."""
        names = [ENVIRONMENT_PREFIX + key.upper() for key in self.variables(*keys)]
        return f"{self.file}, changed by the environment's {' and '.join(names)}" if names else self.file


def read_yaml(path: Path, where: str) -> dict[str, Any]:
    """Read the keys and values of a YAML file. Raises WrongUse that names the file `where`."""
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    text = ""
    try:
        text = read_text(path)
        values = copy.deepcopy(_parse(text))
    except (OmegaConfBaseException, YAMLError, NotText, OSError) as error:
        mark = getattr(error, "problem_mark", None)
        why = f"line {mark.line + 1}: {getattr(error, 'problem', '')}" if mark else str(error).splitlines()[0]
        hint = ": write keys and values, such as root: /workspace/sniperface" if isinstance(error, YAMLError) else ""
        if QUOTED_PATH.search(text):
            hint = f": {WRITE_PATHS}"
        raise WrongUse(f"{where} cannot be read: {why}{hint}") from error
    if not isinstance(values, dict):
        raise WrongUse(f"{where} must hold keys and values, such as provider: local")
    changed = next((key for key, each in values.items() if isinstance(each, str) and not each.isprintable()), None)
    if changed and QUOTED_PATH.search(text):  # "D:\new" is D:, a new line, and ew
        raise WrongUse(f"{changed} in {where} has characters that cannot be printed: {WRITE_PATHS}")
    return {str(key): value for key, value in values.items()}


@functools.cache
def _parse(text: str) -> Any:
    """Parse a YAML document. Cached: `ps` reads the file of each target several times."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=True)


def types_of(kind: type) -> dict[str, Any]:
    """Return the keys of a dataclass, and the type of each."""
    hints = typing.get_type_hints(kind)
    return {each.name: hints[each.name] for each in fields(kind)}


def converted(where: str, key: str, value: Any, kind: Any) -> Any:
    """Convert a value of the file `where` or the environment to the type of its key. Raises WrongUse."""
    optional = isinstance(kind, types.UnionType) and type(None) in typing.get_args(kind)
    if value is None and (optional or typing.get_origin(kind) is tuple):
        return None if optional else ()
    wanted = next(each for each in typing.get_args(kind) if each is not type(None)) if optional else kind
    if typing.get_origin(wanted) is tuple:
        several = value if isinstance(value, list) else str(value).split(",")
        if isinstance(value, dict) or any(isinstance(each, (dict, list)) for each in several):
            raise WrongUse(f"{key} in {where} must be a list of words, such as {key}: [one, two], not {value}")
        return tuple(str(each).strip() for each in several if str(each).strip())
    if wanted is bool:
        if str(value).lower() not in ("true", "false"):
            raise WrongUse(f"{key} in {where} must be true or false, not {value}")
        return str(value).lower() == "true"
    if wanted is str:
        if isinstance(value, dict | list):  # not shown: it may hold a secret
            kinds = "a list" if isinstance(value, list) else "keys and values"
            raise WrongUse(f"{key} in {where} must be one text, such as {key}: 'text', not {kinds}")
        return "" if value is None else str(value)
    try:
        number = wanted(str(value))
    except ValueError:
        number = 0
    if key == "port" and number > MAX_PORT:
        number = 0
    if isinstance(value, bool) or not 0 < number < float("inf"):
        example = {
            "processes": "auto or a whole number from 1, such as 2",
            "port": f"a port up to {MAX_PORT}, such as 22",
        }.get(key, "a whole number from 1, such as 1" if wanted is int else "a number above 0, such as 1.5")
        raise WrongUse(f"{key} in {where} must be {example}, not {value}")
    return number
