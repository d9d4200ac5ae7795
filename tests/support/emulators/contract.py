"""Check request bodies, queries and answers against RunPod's published specification of API v2.

EXCEPTIONS lists where we differ from the specification, and where it contradicts itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from jsonschema import Draft202012Validator, FormatChecker
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

SPECIFICATION = json.loads(Path(__file__).with_name("runpod-v2-openapi.json").read_text(encoding="utf-8"))
SPECIFICATION_PATH = "/v2/openapi.json"  # not in the specification itself: RunPod may not publish it there
EXCEPTIONS = (
    "402 and 5xx are not in the lists of answers: they come under `default`",
    "the example of a created pod has runtime {}, the text says null: both are read as nothing known",
    "`gpu.count` is 1 when left out, but such requests are known to match no machine: we always send it",
    "v2 tells nothing of a machine's memory: our image prints it into its log",
)
FORMATS = FormatChecker(formats=())


@FORMATS.checks("date-time")
def is_date_time(value: object) -> bool:
    return not isinstance(value, str) or bool(
        re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", value)
    )


def problems_of_body(method: str, path: str, body: Any, newer: Mapping[str, Any] | None = None) -> list[str]:
    """The problems that v2 would list under `errors` in a 422 answer. `newer`: a specification with other schemas."""
    about = _operation(method, path).get("requestBody")
    if about is None:
        return [] if body is None else ["$: a body where none is expected"]
    return _errors(about["content"]["application/json"]["schema"], body, newer)


def problems_of_query(method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str]) -> list[str]:
    parameters = {
        (p["name"].lower() if p["in"] == "header" else p["name"], p["in"]): p for p in _parameters(method, path)
    }
    found = [f"?{name}: not a parameter" for name in query if (name, "query") not in parameters]
    given = [((name, "query"), value) for name, value in query.items()]
    given += [((name.lower(), "header"), value) for name, value in headers.items()]
    for key, text in given:
        if key in parameters:
            schema = parameters[key]["schema"]
            found += [f"{key[0]}: {problem}" for problem in _errors(schema, _typed(schema, text))]
    return found


def problems_of_answer(method: str, path: str, status: int, headers: Mapping[str, str], body: bytes) -> list[str]:
    responses = _operation(method, path)["responses"]
    told = _resolved(responses.get(str(status)) or responses["default"])
    content = told.get("content")
    if not content:
        return [f"{status} has a body"] if body else []
    kind = headers.get("Content-Type", "").split(";")[0]
    if kind not in content:
        return [f"{status} is {kind}, not {' or '.join(content)}"]
    return [] if kind == "text/event-stream" else _errors(content[kind]["schema"], json.loads(body))


def knows(method: str, path: str) -> bool:
    try:
        return bool(_operation(method, path))
    except KeyError:
        return False


def parameters_of_path(path: str) -> dict[str, str]:
    template = _template(path)
    names = re.findall(r"{(\w+)}", template)
    found = re.fullmatch(re.sub(r"{\w+}", "([^/]+)", template), path)
    return dict(zip(names, map(unquote, found.groups() if found else ()), strict=True))


def _operation(method: str, path: str) -> dict[str, Any]:
    return SPECIFICATION["paths"][_template(path)][method.lower()]


def _template(path: str) -> str:
    for template in SPECIFICATION["paths"]:
        if re.fullmatch(re.sub(r"{\w+}", "[^/]+", template), path):
            return template
    raise KeyError(path)


def _parameters(method: str, path: str) -> list[dict[str, Any]]:
    shared = SPECIFICATION["paths"][_template(path)].get("parameters", [])
    return [_resolved(each) for each in [*shared, *_operation(method, path).get("parameters", [])]]


def _resolved(value: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in value:
        return value
    found: Any = SPECIFICATION
    for part in value["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    return found


def _typed(schema: dict[str, Any], text: str) -> Any:
    """Convert the text of a query parameter to the type in its schema."""
    kind = _resolved(schema).get("type")
    if kind == "array":
        return text.split(",")
    if kind == "integer" and re.fullmatch(r"-?\d+", text):
        return int(text)
    return {"true": True, "false": False}.get(text, text) if kind == "boolean" else text


def _errors(schema: dict[str, Any], value: Any, newer: Mapping[str, Any] | None = None) -> list[str]:
    about = json.dumps(_absolute(schema)), json.dumps(newer) if newer and "paths" in newer else ""
    return list(_found(*about, json.dumps(value)))


@lru_cache(maxsize=2000)  # most answers come again: lists of GPUs, and a machine that is asked for until it runs
def _found(schema: str, newer: str, value: str) -> tuple[str, ...]:
    errors = _validator(schema, newer).iter_errors(json.loads(value))
    return tuple(f"{error.json_path}: {error.message}" for error in errors)


@cache
def _validator(schema: str, newer: str) -> Draft202012Validator:
    resource = Resource(json.loads(newer) if newer else SPECIFICATION, DRAFT202012)
    registry = Registry().with_resource("urn:runpod", resource)
    return Draft202012Validator(json.loads(schema), registry=registry, format_checker=FORMATS)


def _absolute(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {k: "urn:runpod" + v if k == "$ref" else _absolute(v) for k, v in schema.items()}
    return [_absolute(each) for each in schema] if isinstance(schema, list) else schema
