"""Use an ONNX file as a torch network, so that evaluation measures the published file itself.

Letters: B batch, S side of the images, D embedding size.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from app.data.arrays import SIDE
from app.errors import WrongUse
from app.onnx import rules
from app.onnx.make import HALF_RANGE
from app.onnx.session import CannotRun, Session


class OnnxNetwork(nn.Module):
    """images [B, 3, S, S] in [-1, 1] -> embeddings [B, D]; on the CPU. Raises WrongUse if the file cannot run.

    A file for a fixed number of images runs as often as it must, also one that only claims to take any number, as
    arcface_torch's torch2onnx.py writes for some networks.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))  # gives the network a device and a precision
        try:
            self.session = Session(path)
            self.mean, self.std = normalisation_of(path)
            self.at_once = self.session.batch
            self.embedding_dim = self._probe(path)
        except CannotRun as error:
            raise WrongUse(f"{path} cannot be run: {error}; check it with python -m app.export check={path}") from error

    def __deepcopy__(self, _: dict[int, Any]) -> OnnxNetwork:
        return self  # a session has no state to copy

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.detach().float().cpu().numpy() * HALF_RANGE + HALF_RANGE
        images = (pixels - self.mean) / self.std
        if self.at_once is None:
            return torch.from_numpy(self.session.run(images)).float().to(x.device)
        found = []
        for start in range(0, len(images), self.at_once):
            piece = images[start : start + self.at_once]
            missing = self.at_once - len(piece)
            whole = np.concatenate([piece, *[piece[-1:]] * missing]) if missing else piece
            found.append(self.session.run(whole)[: len(piece)])
        return torch.from_numpy(np.concatenate(found)).float().to(x.device)

    def _probe(self, path: Path) -> int:
        """Return the size of the embeddings, and find out whether the file takes several images."""
        try:
            out = self(torch.zeros(2, 3, SIDE, SIDE))
        except CannotRun:
            if self.at_once is not None:
                raise
            out = torch.empty(0)
        if self.at_once is None and (out.ndim != 2 or len(out) != 2):
            self.at_once = 1
            out = self(torch.zeros(2, 3, SIDE, SIDE))
        if out.ndim != 2 or len(out) != 2:
            shape = list(out.shape)
            raise WrongUse(
                f"{path} gives {shape} for two images [2, 3, {SIDE}, {SIDE}]; embeddings [2, D] are required"
            )
        return int(out.shape[1])


def normalisation_of(path: Path) -> tuple[float, float]:
    """Return the mean and std by which a caller must normalise pixels from 0 to 255.

    They come from the JSON beside the file, else from its first nodes by the rule of the MFR challenge's server.
    """
    try:
        beside = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        mean, std = (float(beside["normalisation"][key]) for key in ("mean", "std"))
        if beside["file"] == path.name and math.isfinite(mean) and math.isfinite(std) and std != 0:
            return mean, std
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return rules.normalisation_of_file(path)
