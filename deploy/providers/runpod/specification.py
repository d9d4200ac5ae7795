"""Read the specification that RunPod publishes: it may be newer than the one that this version was written for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GPU_SCHEMA = "CreateGpuConfig"
MEMORY_FIELD = "minRamPerGpu"  # in other clients' requests, but not in the specification that we have


def fields_of(specification: Mapping[str, Any], schema: str) -> set[str]:
    """Return the fields of a schema of an OpenAPI document, those of `allOf` and `$ref` included."""
    schemas = (specification.get("components") or {}).get("schemas") or {}
    found: set[str] = set()
    seen: set[str] = set()
    left: list[Any] = [{"$ref": f"#/{schema}"}]
    while left:
        each = left.pop()
        if not isinstance(each, dict):
            continue
        name = str(each.get("$ref", "")).rpartition("/")[2]
        if name and name not in seen:
            seen.add(name)
            left.append(schemas.get(name))
        found |= set(each.get("properties") or {})
        left += [part for key in ("allOf", "anyOf", "oneOf") for part in each.get(key) or []]
    return found
