"""Take the pictures of the report and of the page of `invoke ui`, of real runs, in a headless Chromium.

    python bootstrap.py invoke train                                       # the run of report.png
    python bootstrap.py invoke train --name RUN --set …                    # a second one, to compare
    python bootstrap.py python docs/screenshots.py [PROJECT]               # writes docs/pictures/*.png

PROJECT is the folder with the runs, by default this one. The first run that has a report is shown. Every picture is
1000 pixels wide and has at most 256 colours, so that it is small. None of them shows a photograph of a person.
"""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))

from tests.support.browser import Tab, browser, chromium
from tests.support.ports import free_port

OUT = PROJECT / "docs" / "pictures"
WIDTH = 1000
REPORT_HIGH, LIST_HIGH, COMPARE_HIGH = 835, 330, 560  # pixels


def main(argv: list[str]) -> int:
    program = chromium()
    if program is None:
        print("error: needs Chromium: apt-get install chromium", file=sys.stderr)
        return 2
    place = Path(argv[0]) if argv else PROJECT
    reports = sorted(place.glob("runs/*/report.html"))
    others = [file.parent.name for file in sorted(place.glob("runs/*/metrics.jsonl"))]
    names = [name for name in others if not reports or name != reports[0].parent.name]
    if not reports or not names:
        print(
            f"error: {place / 'runs'} has fewer than two finished runs: start them with invoke train", file=sys.stderr
        )
        return 2
    with tempfile.TemporaryDirectory() as profile, browser(program, Path(profile)) as tab, page(place) as server:
        address = str(server.stdout.readline() if server.stdout else "")
        while not (found := re.search(r"http://\S+", address)):
            address = str(server.stdout.readline() if server.stdout else "")
        tab.look_like(WIDTH, dark=False)
        tab.open(reports[0].as_uri())
        save(tab, "report", 0, REPORT_HIGH)
        tab.open(found[0])
        save(tab, "ui_runs", 0, LIST_HIGH)
        site = found[0].partition("?")[0]
        tab.open(f"{site}compare?run={reports[0].parent.name}&run={names[0]}")
        save(tab, "ui_compare", 0, COMPARE_HIGH)
        server.terminate()
    return 0


def page(place: Path) -> subprocess.Popen[str]:
    argv = [sys.executable, "-u", "-m", "deploy", "ui", "--port", str(free_port())]
    return subprocess.Popen(argv, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def save(tab: Tab, name: str, top: int, high: int) -> None:
    """Write a picture of a part of the page, from `top` on, `high` pixels."""
    part = {"x": 0, "y": top, "width": WIDTH, "height": high, "scale": 1}
    told = tab.call("Page.captureScreenshot", captureBeyondViewport=True, clip=part)
    with Image.open(io.BytesIO(base64.b64decode(told["data"]))) as picture:
        few = picture.convert("RGB").quantize(256)
    few.save(OUT / f"{name}.png", optimize=True)
    print(f"{OUT / f'{name}.png'}: {(OUT / f'{name}.png').stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
