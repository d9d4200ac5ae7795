"""The bar of a run that is followed in a terminal."""

from __future__ import annotations

import io

from rich.console import Console

from deploy.ui.screen import Bars


def test_the_bar_ends_with_the_newest_accuracy() -> None:
    """The last evaluation comes after the last step. The bar used to keep the accuracy before it."""
    shown = io.StringIO()
    step = {"event": "step", "step": 10, "epoch": 1, "loss": 6.017, "images_per_s": 40.0, "seconds_left": 0}
    with Bars(Console(file=shown, force_terminal=True, width=110)) as bar:
        bar.update("", [{"event": "start", "epochs": 2, "steps_per_epoch": 5}, step])
        bar.update("", [{"event": "eval", "what": "trained", "accuracy": 0.8858, "rank1": 0.96}])
    assert "epoch 1 (2/2) loss 6.017 accuracy 88.6%" in shown.getvalue()
