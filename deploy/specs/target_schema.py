"""The JSON schema of a target's file, for editors, made from the dataclasses that the file fills."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from deploy.specs.comments import settings_of
from deploy.specs.options import Options
from deploy.specs.settings import CHOICES, OPTIONS, Target

FILE = "target.schema.json"
FIRST_LINE = f"# yaml-language-server: $schema={FILE}"  # editors read it


def target_schema() -> dict[str, Any]:
    """The schema of a target's file. Which keys are allowed depends on the provider."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A target of Sniperface",
        "type": "object",
        "required": ["provider", "root"],
        "properties": {"provider": {"enum": list(OPTIONS), "description": "who makes the machine"}},
        "allOf": [_of_provider(name, options) for name, options in OPTIONS.items()],
    }


def _of_provider(name: str, options: type[Options]) -> dict[str, Any]:
    keys = {**_keys(Target), **_keys(options)}
    del keys["name"], keys["options"]
    keys["provider"] = {"const": name}
    return {
        "if": {"properties": {"provider": {"const": name}}, "required": ["provider"]},
        "then": {"properties": keys, "additionalProperties": False},
    }


def _keys(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    told = {each.name: each.meaning for each in settings_of(Path(inspect.getfile(kind)))[kind.__name__]}
    found = {}
    for each in fields(kind):
        key = _value(each.name, hints[each.name], getattr(kind, "choices", {}))
        if told[each.name]:
            key["description"] = told[each.name]
        if each.default is not MISSING:
            key["default"] = list(each.default) if isinstance(each.default, tuple) else each.default
        found[each.name] = key
    return found


def _value(key: str, kind: Any, of_provider: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    choices = {**CHOICES, **of_provider}
    if key in choices:
        return {"enum": list(choices[key])}
    if kind is bool:
        return {"type": "boolean"}
    optional = isinstance(kind, types.UnionType) and type(None) in typing.get_args(kind)
    wanted = next(each for each in typing.get_args(kind) if each is not type(None)) if optional else kind
    if typing.get_origin(wanted) is tuple:
        return {"type": ["array", "string", "null"], "items": {"type": ["string", "number"]}}
    number = {int: ["integer"], float: ["number"]}.get(wanted)
    names = number or ["string", "number"]
    value: dict[str, Any] = {"type": [*names, *(["null"] if optional else [])]}
    if number:
        value["exclusiveMinimum"] = 0
    if key == "processes":
        return {"anyOf": [value, {"const": "auto"}]}
    return value
