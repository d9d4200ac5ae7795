"""Record a terminal: run the README's commands for real in a pseudo-terminal, and draw it as one animated SVG.

    python bootstrap.py invoke --list                     # the project must be set up
    pip install pyte && python docs/record.py             # writes docs/pictures/terminal.svg; POSIX only

Nothing of the text is changed, but for the project's folder, which becomes ~/sniperface. A command that takes longer
than AT_MOST_S is shown faster, as a whole.
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from html import escape
from pathlib import Path

import pyte

PROJECT = Path(__file__).resolve().parents[1]
OUT = PROJECT / "docs" / "pictures" / "terminal.svg"
COMMANDS = ("python bootstrap.py invoke train", "python bootstrap.py invoke status")
COLUMNS, ROWS = 110, 30
LEAST_S, AT_MOST_S, AT_END_S, TYPED_S = 0.15, 22.0, 5.0, 0.06
WIDE, HIGH, MARGIN = 7.8, 18, 14  # of a character, in pixels
STYLE = """
svg{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}text{white-space:pre;fill:var(--text)}
:root{--back:#fff;--edge:#d0d7de;--text:#1f2328;--red:#b42318;--green:#1a7f37;--brown:#7d5700;--blue:#0958b3;
--magenta:#8250df;--cyan:#0a6b77;--dim:#59636e}
@media(prefers-color-scheme:dark){:root{--back:#0d1117;--edge:#3d444d;--text:#e6edf3;--red:#ff8a80;--green:#56d364;
--brown:#e3b341;--blue:#79c0ff;--magenta:#d2a8ff;--cyan:#76e3ea;--dim:#9198a1}}
rect{fill:var(--back);stroke:var(--edge)}.bold{font-weight:700}
.red{fill:var(--red)}.green{fill:var(--green)}.brown{fill:var(--brown)}.blue{fill:var(--blue)}
.magenta{fill:var(--magenta)}.cyan{fill:var(--cyan)}.brightblack{fill:var(--dim)}
"""


def main() -> int:
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    frames: list[tuple[float, list[str]]] = []  # seconds since the start, and the lines of the picture as SVG
    now = 0.0
    for command in COMMANDS:
        stream.feed(b"$ ")
        for letter in command:
            stream.feed(letter.encode())
            now += TYPED_S
            frames.append((now, lines(screen)))
        stream.feed(b"\r\n")
        began, seen = time.monotonic(), []
        for data in output(command.split()):
            stream.feed(data)
            seen.append((time.monotonic() - began, lines(screen)))
        took = time.monotonic() - began
        faster, last = max(1.0, took / AT_MOST_S), now
        for after, shown in seen:
            if now + after / faster - last >= LEAST_S:
                last = now + after / faster
                frames.append((last, shown))
        now += took / faster
        frames.append((now, lines(screen)))
        print(f"{command}: {took:.0f} s, shown {faster:.1f} times as fast")
        now += AT_END_S
    OUT.write_text(drawn(frames, now), encoding="utf-8")
    print(f"{OUT}: {len(frames)} pictures, {now:.0f} s, {OUT.stat().st_size / 1000:.0f} kB")
    return 0


def output(argv: list[str]) -> Iterator[bytes]:
    """What a command writes to its terminal, as it comes. Raises CalledProcessError if it fails."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "PATH": f"{PROJECT / '.venv/bin'}:{os.environ['PATH']}"}
    with subprocess.Popen(argv, cwd=PROJECT, stdin=its, stdout=its, stderr=its, env=environment) as process:
        os.close(its)
        folder, kept = os.fsencode(PROJECT), b""
        while True:
            try:
                data = os.read(ours, 65536) if select.select([ours], [], [], 1)[0] else b""
            except OSError:  # Linux: the command has closed its end
                break
            kept = (kept + data).replace(folder, b"~/sniperface")
            ends = [size for size in range(1, len(folder)) if kept.endswith(folder[:size])]
            cut = len(kept) - max(ends, default=0)
            yield kept[:cut]
            kept = kept[cut:]
    yield kept
    os.close(ours)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, argv)


def lines(screen: pyte.Screen) -> list[str]:
    """Each line of the screen as the content of a <text> element."""
    found = []
    for row in range(ROWS):
        parts: list[tuple[str, str]] = []
        for column in range(COLUMNS):
            each = screen.buffer[row][column]
            look = " ".join(filter(None, [each.fg if each.fg != "default" else "", "bold" if each.bold else ""]))
            if parts and parts[-1][0] == look:
                parts[-1] = look, parts[-1][1] + each.data
            else:
                parts.append((look, each.data))
        parts[-1] = parts[-1][0], parts[-1][1].rstrip()
        shown = [f'<tspan class="{look}">{escape(text)}</tspan>' if look else escape(text) for look, text in parts]
        found.append("".join(shown))
    return found


def drawn(frames: list[tuple[float, list[str]]], seconds: float) -> str:
    """A strip of all pictures, which moves up by a whole picture at a time. Equal lines occur once."""
    kept = [frame for index, frame in enumerate(frames) if index == 0 or frame[1] != frames[index - 1][1]]
    names: dict[str, str] = {}
    strip = []
    width, height = COLUMNS * WIDE + 2 * MARGIN, ROWS * HIGH + 2 * MARGIN
    for number, (_, shown) in enumerate(kept):
        rows = [
            f'<use href="#{names.setdefault(text, f"t{len(names)}")}" y="{(row + 1) * HIGH}"/>'
            for row, text in enumerate(shown)
            if text.strip()
        ]
        strip.append(f'<g transform="translate(0 {number * height:.0f})">{"".join(rows)}</g>')
    moves = [f"{start / seconds:.3%}{{transform:translateY(-{i * height:.0f}px)}}" for i, (start, _) in enumerate(kept)]
    last = (len(kept) - 1) * height
    style = f"""{STYLE}
@keyframes play{{0%{{transform:none}}{"".join(moves)}100%{{transform:translateY(-{last:.0f}px)}}}}
#strip{{animation:play {seconds:.1f}s step-end infinite}}
@media(prefers-reduced-motion){{#strip{{animation:none;transform:translateY(-{last:.0f}px)}}}}"""
    texts = "".join(f'<text id="{name}">{text}</text>' for text, name in names.items())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img">'
        f"<title>A terminal: {escape(', then '.join(COMMANDS))}</title><style>{style}</style><defs>{texts}</defs>"
        f'<rect x=".5" y=".5" width="{width - 1:.0f}" height="{height - 1:.0f}" rx="8"/>'
        f'<svg x="{MARGIN}" y="{MARGIN}" width="{width - 2 * MARGIN:.0f}" height="{height - 2 * MARGIN:.0f}">'
        f'<g id="strip">{"".join(strip)}</g></svg></svg>\n'
    )


if __name__ == "__main__":
    sys.exit(main())
