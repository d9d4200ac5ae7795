"""The JSON schema of targets fits the dataclasses, and the file beside the targets is up to date."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from deploy.specs.settings import OPTIONS, Target
from deploy.specs.settings_file import read_yaml
from deploy.specs.target_schema import FILE, FIRST_LINE, target_schema

TARGETS = Path(__file__).parents[3] / "conf" / "deploy"


def test_the_file_beside_the_targets_is_up_to_date() -> None:
    written = json.loads((TARGETS / FILE).read_text(encoding="utf-8"))
    assert written == target_schema(), f"run: invoke target schema > conf/deploy/{FILE}"


@pytest.mark.parametrize("file", sorted(TARGETS.glob("*.yaml")), ids=lambda file: file.stem)
def test_each_shipped_target_names_the_schema_and_has_only_its_keys(file: Path) -> None:
    assert file.read_text(encoding="utf-8").splitlines()[0] == FIRST_LINE
    values = read_yaml(file, file.name)
    rules = {each["then"]["properties"]["provider"]["const"]: each["then"] for each in target_schema()["allOf"]}
    keys = rules[values["provider"]]["properties"]
    assert set(values) <= set(keys)
    for key, value in values.items():
        assert fits(value, keys[key]), (key, value, keys[key])


def test_every_key_of_every_provider_is_described_by_its_type() -> None:
    rules = target_schema()["allOf"]
    assert len(rules) == len(OPTIONS)
    for rule, options in zip(rules, OPTIONS.values(), strict=True):
        names = {each.name for kind in (Target, options) for each in fields(kind)} - {"name", "options"}
        assert set(rule["then"]["properties"]) == names
        assert rule["then"]["additionalProperties"] is False
    keys = rules[list(OPTIONS).index("runpod")]["then"]["properties"]
    assert keys["cloud"]["enum"] == ["SECURE", "COMMUNITY"]
    assert keys["max_usd"]["type"] == ["number", "null"]
    assert keys["volume"]["description"].startswith("id of a network volume")
    count = keys["gpu_count"]
    assert (count["type"], count["exclusiveMinimum"], count["default"]) == (["integer"], 0, 1)


def fits(value: object, rule: dict[str, object]) -> bool:
    """Check a value by the part of JSON schema that the schema uses."""
    if "anyOf" in rule:
        return any(fits(value, each) for each in rule["anyOf"])  # type: ignore[attr-defined]
    if "const" in rule:
        return value == rule["const"]
    if "enum" in rule:
        return value in rule["enum"]  # type: ignore[operator]
    kind = {bool: "boolean", str: "string", int: "integer", float: "number", list: "array", type(None): "null"}[
        type(value)
    ]
    return kind in rule["type"] or (kind == "integer" and "number" in rule["type"])  # type: ignore[operator]
