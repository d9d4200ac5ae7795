"""The list of an image's packages is a CycloneDX document."""

from __future__ import annotations

from datetime import datetime, timezone

import jsonschema
import pytest

from deploy.errors import StepFailed
from deploy.providers import sbom

LISTING = (
    "os\tdebian\t12\t\ndeb\topenssh-server\t1:9.2p1-2+deb12u10\tamd64\ndeb\tgit\t1:2.39.5-0\tamd64\n"
    "pypi\ttorch\t2.13.0+cpu\t\npypi\tTyping_Extensions\t4.16.0\t\npypi\ttorch\t2.13.0+cpu\t\n"
)
# What CycloneDX 1.6 requires of the parts that are used here.
SCHEMA = {
    "type": "object",
    "required": ["bomFormat", "specVersion"],
    "additionalProperties": False,
    "properties": {
        "bomFormat": {"const": "CycloneDX"},
        "specVersion": {"const": "1.6"},
        "serialNumber": {
            "type": "string",
            "pattern": "^urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-[1-5][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$",
        },
        "version": {"type": "integer", "minimum": 1},
        "metadata": {
            "type": "object",
            "properties": {
                "timestamp": {"pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"},
                "component": {"$ref": "#/$defs/component"},
            },
        },
        "components": {"type": "array", "uniqueItems": True, "items": {"$ref": "#/$defs/component"}},
        "dependencies": {
            "type": "array",
            "items": {
                "required": ["ref"],
                "properties": {"dependsOn": {"type": "array", "uniqueItems": True, "items": {"type": "string"}}},
            },
        },
    },
    "$defs": {
        "component": {
            "type": "object",
            "required": ["type", "name"],
            "additionalProperties": False,
            "properties": {
                "type": {"enum": ["library", "container"]},
                "bom-ref": {"type": "string", "minLength": 1},
                "name": {"type": "string", "minLength": 1},
                "version": {"type": "string"},
                "purl": {"type": "string", "pattern": "^pkg:[a-z]+/[^ ]+@[^ ]+$"},
                "properties": {"type": "array", "items": {"required": ["name", "value"]}},
            },
        }
    },
}


def made() -> dict[str, object]:
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    return sbom.document(LISTING, "sniperface:cpu-1", "sha256:abc", "ubuntu:24.04@sha256:def", when)


def test_it_has_what_the_format_requires() -> None:
    document = made()
    jsonschema.validate(document, SCHEMA)
    references = [each["bom-ref"] for each in document["components"]]  # type: ignore[attr-defined]
    assert len(set(references)) == len(references) == 4
    assert document["dependencies"] == [{"ref": "image", "dependsOn": references}]
    assert made() == document  # the same image gives the same document


def test_each_package_has_its_purl() -> None:
    purls = {each["name"]: each["purl"] for each in made()["components"]}  # type: ignore[attr-defined]
    assert purls["torch"] == "pkg:pypi/torch@2.13.0%2Bcpu"
    assert purls["typing-extensions"] == "pkg:pypi/typing-extensions@4.16.0"
    assert purls["openssh-server"] == "pkg:deb/debian/openssh-server@1%3A9.2p1-2%2Bdeb12u10?arch=amd64&distro=debian-12"


def test_an_image_without_our_packages_is_refused() -> None:
    with pytest.raises(StepFailed, match="not built from our Dockerfile"):
        sbom.document("os\tdebian\t12\t\n", "x:1", "sha256:abc", "y")
