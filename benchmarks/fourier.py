"""Steps a second of the Fourier layer on this CPU: forward and backward of 64 images at 112x112 in 32 bits.

Ours computes half a spectrum and builds the mask with a few operations. The published peer computes the whole spectrum,
shifts it along all axes and back, and builds the mask bin by bin in every step. Both run in one process, in turn, on
one core, with the same gain (with its planes rolled, as the peer applies them to other colours).
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from app.models.fourier import SMOOTHNESS, FourierLayer
from benchmarks._claims import Claim, in_turn, quick, report, seconds

SIZE = 112


class Published(nn.Module):
    """The layer as in the CatFace fork."""

    def __init__(self, gain: Tensor, smoothness: float) -> None:
        super().__init__()
        self.gain, self.smoothness = nn.Parameter(gain), smoothness

    def mask(self, size: int) -> Tensor:
        mask = torch.ones(size, size)
        for i in range(size):
            for j in range(size):
                down, across = abs(i - size // 2), abs(j - size // 2)
                if down**2 + across**2 <= 1:
                    mask[i, j] = self.smoothness
                else:
                    distance = math.sqrt((down / (size / 2)) ** 2 + (across / (size / 2)) ** 2)
                    mask[i, j] = max(1.0, distance / self.smoothness)
        return mask

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.fftshift(torch.fft.fft2(x)) * self.mask(x.shape[-1]) * self.gain
        return torch.fft.ifft2(torch.fft.ifftshift(spectrum)).real


def main() -> int:
    is_quick = quick()
    batch, rounds = (8, 2) if is_quick else (64, 15)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layer = FourierLayer(SIZE, "vit")
    nn.init.uniform_(layer.learnable_param, 0.5, 1.5)
    peer = Published(layer.learnable_param.detach().roll(1, 0), SMOOTHNESS["vit"])
    images, upstream = torch.randn(batch, 3, SIZE, SIZE), torch.randn(batch, 3, SIZE, SIZE)
    assert torch.allclose(layer(images), peer(images), atol=1e-4)

    def step(network: nn.Module) -> float:
        return 1 / seconds(lambda: network(images).backward(upstream))

    fast, slow, ratio = in_turn(lambda: step(layer), lambda: step(peer), rounds)
    claim = Claim(f"Fourier layer, {batch} images, one core", fast, slow, "steps/s", ratio, 5.0)
    return report("fourier", [claim], is_quick=is_quick)


if __name__ == "__main__":
    raise SystemExit(main())
