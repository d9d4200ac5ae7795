"""List the packages of an image, system and Python, as a CycloneDX document."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote

from deploy.errors import StepFailed

SPEC_VERSION = "1.6"
# Runs in the image under the system's Python. Prints one line per package.
LISTER = """\
import glob, importlib.metadata, platform, subprocess
told = platform.freedesktop_os_release()
print("os", told.get("ID", ""), told.get("VERSION_ID", ""), "", sep="\\t")
form = "deb\\\\t${Package}\\\\t${Version}\\\\t${Architecture}\\\\n"
print(subprocess.run(["dpkg-query", "-W", "-f", form], check=True, capture_output=True, text=True).stdout, end="")
for each in importlib.metadata.distributions(path=glob.glob("/opt/sniperface/lib/python3*/site-packages")):
    print("pypi", each.metadata["Name"], each.version, "", sep="\\t")
"""


def document(listing: str, image: str, image_id: str, base: str, made: datetime | None = None) -> dict[str, Any]:
    """Build the CycloneDX document of an image from the output of LISTER.

    `base` names the base image, with its digest if known.
    Raises StepFailed unless the output lists the system, Debian packages and Python packages.
    """
    rows = sorted({_row(line) for line in listing.splitlines() if line})
    system = next((f"{name}-{version}" for kind, name, version, _ in rows if kind == "os"), "")
    components = [_component(row, system) for row in rows if row[0] != "os"]
    if {row[0] for row in rows} != {"os", "deb", "pypi"}:
        raise StepFailed(f"the packages of the image {image} cannot be listed: it is not built from our Dockerfile")
    name, _, tag = image.rpartition(":")
    return {
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "serialNumber": f"urn:uuid:{uuid.UUID(bytes=hashlib.sha256(image_id.encode()).digest()[:16], version=4)}",
        "version": 1,
        "metadata": {
            "timestamp": (made or datetime.now(timezone.utc)).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {
                "type": "container", "bom-ref": "image", "name": name, "version": tag,
                "properties": [
                    {"name": "sniperface:image-id", "value": image_id}, {"name": "sniperface:base", "value": base},
                ],
            },
        },
        "components": components,
        "dependencies": [{"ref": "image", "dependsOn": [each["bom-ref"] for each in components]}],
    }  # fmt: skip


def _row(line: str) -> tuple[str, str, str, str]:
    kind, name, version, architecture = line.split("\t")
    return kind, name, version, architecture


def _component(row: Iterable[str], system: str) -> dict[str, Any]:
    kind, name, version, architecture = row
    name = name.lower().replace("_", "-") if kind == "pypi" else name
    place = f"deb/{system.partition('-')[0]}" if kind == "deb" else kind
    query = f"?arch={architecture}&distro={system}" if kind == "deb" else ""
    purl = f"pkg:{place}/{quote(name, safe='')}@{quote(version, safe='')}{query}"
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
