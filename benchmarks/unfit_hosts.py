"""Measure how long `deploy` takes to refuse each unusable host of the RunPod emulator, as the only candidate.

The seconds run on the emulator's clock, from the request for a machine to the error that ends the command. There is no
peer: each claim compares a host's time with the limit. The test that is run asserts the reason and the release, too.
docs/failures.md has the figures. `benchmarks/failures.py` includes this measurement.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from benchmarks._claims import Claim, quick, report

PROJECT = Path(__file__).parents[1]
TEST = "tests/deploy/providers/test_runpod_hosts.py::test_an_unfit_host_is_refused_in_seconds"
LIMIT_S = 30.0
LEAST_S = 0.01  # lower values count as this


def main() -> int:
    return report("unfit_hosts", claims(), is_quick=quick())


def claims() -> list[Claim]:
    """Run the test; return one claim per host. Raises CalledProcessError if a host was not refused as it must be."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.xml"
        command = [sys.executable, "-m", "pytest", "-q", TEST, f"--junitxml={file}"]
        subprocess.run(command, cwd=PROJECT, check=True)
        cases = ElementTree.parse(file).iter("testcase")  # noqa: S314 - written by our own test run
        properties = [{each.attrib["name"]: each.attrib["value"] for each in case.iter("property")} for case in cases]
    return [of_host(each["host"], float(each["refused_s"])) for each in properties]


def of_host(name: str, refused_s: float) -> Claim:
    return Claim(name, refused_s, LIMIT_S, "s", LIMIT_S / max(refused_s, LEAST_S), 1.0)


if __name__ == "__main__":
    raise SystemExit(main())
