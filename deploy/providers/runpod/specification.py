"""Read the specification that RunPod publishes: it may be newer than the one that this version was written for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GPU_SCHEMA = "CreateGpuConfig"
MEMORY_FIELD = "minRamPerGpu"  # in other clients' requests, but not in the specification that we have


def fields_of(specification: Mapping[str, Any], schema: str) -> set[str]:
    """Return the fields of a schema of an OpenAPI document, those of `allOf` and `$ref` included."""
    components = specification.get("components")
    schemas = components.get("schemas") if isinstance(components, dict) else None
    schemas = schemas if isinstance(schemas, dict) else {}
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
        properties = each.get("properties")
        found |= set(properties) if isinstance(properties, dict) else set()
        parts = [each[key] for key in ("allOf", "anyOf", "oneOf") if isinstance(each.get(key), list)]
        left += [part for several in parts for part in several]
    return found
