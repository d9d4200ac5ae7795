"""Run an ONNX file with onnxruntime on the CPU. The detector of faces has its own: app/data/faces/networks.py.

Letters: N images, D embedding size.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from app.errors import Failed

VERSION: str = onnxruntime.__version__
FATAL_ONLY = 4  # log level; errors are also raised, and the caller reports them


class CannotRun(Failed):
    """onnxruntime rejects the file or fails while running it. The message is the first line of its error."""


class Session:
    """A loaded file, or its bytes; runs with as many threads as torch uses. Raises CannotRun."""

    def __init__(self, model: Path | bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = FATAL_ONLY
        source = model if isinstance(model, bytes) else str(model)
        try:
            self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no common base class
            raise CannotRun(first_line(error)) from error
        taken = self._session.get_inputs()[0]
        self._input = taken.name
        first = taken.shape[0] if taken.shape else None
        self.batch: int | None = first if isinstance(first, int) else None  # of images; None: any number

    def run(self, x: NDArray[np.float32]) -> NDArray[Any]:
        """Return the first output for images [N, 3, H, W]. Raises CannotRun."""
        return self.outputs(x)[0]

    def outputs(self, x: NDArray[np.float32]) -> list[NDArray[Any]]:
        """Return all outputs for images [N, 3, H, W]. Raises CannotRun."""
        try:
            return [np.asarray(out) for out in self._session.run(None, {self._input: x})]
        except Exception as error:  # as above
            raise CannotRun(first_line(error)) from error

    def ms_an_image(self, x: NDArray[np.float32], repeats: int) -> float:
        """Median time in ms of a batch of one image [1, 3, H, W]."""
        self.run(x)  # warm-up: the first call allocates memory
        times_s = []
        for _ in range(repeats):
            begun = time.perf_counter()
            self.run(x)
            times_s.append(time.perf_counter() - begun)
        return 1000 * statistics.median(times_s)


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300].rstrip(". ")
