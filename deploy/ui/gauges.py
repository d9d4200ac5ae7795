"""PURE: what a run's loss, GPUs and cost look like in a line of text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from deploy.border import Gpu

GIB = 1 << 30
BLOCKS, ASCII = "▁▂▃▄▅▆▇█", "_.-=+*#@"
REFRESH = "|"  # where new pseudo-IDs change the task, so that the loss before and after is not comparable
CURVE_CHARACTERS = 24
REFRESH_EVERY = 4  # at most every so many characters of a curve are REFRESH; an older part is left out

Curve = Sequence[float | None]  # None: a refresh


def marks(stream: object, *, legacy_windows: bool) -> str:
    """The characters of a curve, lowest first, that can be shown on a stream: a Windows console may lack blocks."""
    encoding = getattr(stream, "encoding", None) or "ascii"
    return BLOCKS if encoding.lower().startswith("utf") and not legacy_windows else ASCII


def sparkline(values: Sequence[float], least: float, most: float, marks: str, width: int = CURVE_CHARACTERS) -> str:
    """Draw values between `least` and `most`, a character each; of a long curve, evenly spaced ones, ends included."""
    if len(values) > width:
        step = (len(values) - 1) / max(1, width - 1)
        values = [values[round(place * step)] for place in range(width)] if width > 1 else values[-1:]
    height = (most - least) or 1.0
    top = len(marks) - 1
    return "".join(marks[min(top, max(0, round((value - least) / height * top)))] for value in values)


def loss_line(curve: Curve, marks: str, width: int = CURVE_CHARACTERS) -> str:
    """Draw the newest part of a curve with its refreshes in at most `width` characters; "" for less than two values."""
    parts: list[list[float]] = [[]]
    for value in curve:
        if value is not None:
            parts[-1].append(value)
        elif parts[-1]:
            parts.append([])
    parts = [part for part in parts if part][-(width // REFRESH_EVERY + 1) :]
    known = [value for part in parts for value in part]
    if len(known) < 2 or width < 2 * len(parts):
        return ""
    room = width - (len(parts) - 1)  # for values
    drawn, begun, before = [], 0, 0
    for part in parts:
        begun += len(part)
        end = begun if len(known) <= room else max(before + 1, round(begun * room / len(known)))
        drawn.append(sparkline(part, min(known), max(known), marks, end - before))
        before = end
    return REFRESH.join(drawn)[-width:]


def gpu_words(gpus: Sequence[Gpu]) -> str | None:
    """How busy the GPUs are and how full their memory is; None without a measured one."""
    if not gpus:
        return None
    busy = sorted(gpu.busy_pct for gpu in gpus)
    used, every = (sum(getattr(gpu, key) for gpu in gpus) / GIB for key in ("used_bytes", "all_bytes"))
    what = "GPU" if len(gpus) == 1 else f"{len(gpus)} GPUs"
    spread = f"{busy[0]:.0f}%" if f"{busy[0]:.0f}" == f"{busy[-1]:.0f}" else f"{busy[0]:.0f}-{busy[-1]:.0f}%"
    return f"{what} {spread} busy, {used:.0f}/{every:.0f} GiB"


def cost_words(usd: float | None, limit_usd: float | None) -> str | None:
    """Dollars so far and their limit; None if nothing was paid."""
    if not usd:
        return None
    return f"${usd:.2f}" + (f" of ${limit_usd:.2f}" if limit_usd else "")


def lines_of(parts: Iterable[str | None], width: int) -> list[str]:
    """Put the parts on as few lines of at most `width` characters as their order allows. A part is not divided."""
    lines: list[str] = []
    for part in parts:
        if part and lines and len(lines[-1]) + 2 + len(part) <= width:
            lines[-1] += f"  {part}"
        elif part:
            lines.append(part)
    return lines
