"""Speed, time left, and mean metrics between two reports. Reads nothing from the device in between."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from app.runtime.dist import World, mean


class Pace:
    """Counts updates. Skipped updates count for the speed, not for the means."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self._restart()

    def _restart(self) -> None:
        self.since, self.images, self.metrics = time.monotonic(), 0, list[dict[str, Tensor]]()

    def count(self, images: int, metrics: dict[str, Tensor] | None) -> None:
        """Count an update over `images` images of all ranks; `metrics` is None if it was skipped."""
        self.images += images
        if metrics is not None:
            self.metrics.append(metrics)
            self.losses.append(metrics["loss"])

    def report(self, here: World) -> dict[str, float | None]:
        """Mean metrics over steps and ranks (loss None if all were skipped), and images per second of all ranks."""
        means: dict[str, float | None] = {"loss": None}
        if self.metrics:  # on all ranks or on none: ranks skip together
            names = list(self.metrics[0])
            values = torch.stack([torch.stack([m[name] for name in names]) for m in self.metrics]).mean(0)
            means = dict(zip(names, mean(values, here).tolist(), strict=True))
        means["images_per_s"] = self.images / (time.monotonic() - self.since)
        self._restart()
        return means

    def epoch_loss(self, here: World) -> float | None:
        return float(mean(torch.stack(self.losses).mean(), here)) if self.losses else None


def seconds_left(elapsed_s: float, done: int, left: int) -> float:
    """Expected seconds for the `left` images of a run whose process did `done` in `elapsed_s`, mining included."""
    return elapsed_s / done * left
