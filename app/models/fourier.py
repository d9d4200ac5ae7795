"""Learned gain on the spectrum of an image: the Fourier transform layer of the CatFace fork of arcface_torch.

The published layer does: FFT, shift, multiply by a fixed mask, multiply by a learned real gain, unshift, inverse FFT,
real part. For real images that is a filter with the point-symmetric part of the gain, ½ (gain(k) + gain(-k)). The rest
of the gain affects only the imaginary part, which is discarded. So this layer computes half of the spectrum.

Letters: B batch, S side of the image, H = S // 2 + 1 columns of half a spectrum.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# The mask has this value s in the middle five bins and max(1, d / s) elsewhere. d is the distance from the middle, in
# half sides.
SMOOTHNESS = {"vit": 0.8, "iresnet": 1.0}


def fourier_layer(mask: str, image_size: int) -> nn.Module:
    """Return the layer that `backbone.fourier` selects; with `none`, the identity."""
    return nn.Identity() if mask == "none" else FourierLayer(image_size, mask)


class FourierLayer(nn.Module):
    """Filter images: [B, 3, S, S] -> the same, in fp32 regardless of autocast.

    `mask` is the published `vit` or `iresnet` mask. The gain has one plane per colour, with frequency 0 in the middle.
    """

    def __init__(self, image_size: int, mask: str = "vit") -> None:
        super().__init__()
        self.smoothness = SMOOTHNESS[mask]
        self.learnable_param = nn.Parameter(torch.ones(3, image_size, image_size))  # the published name
        # Integers instead of the mask itself: floating-point buffers count as BN averages and are averaged over ranks.
        # The buffer is saved because it distinguishes this project's files from the fork's: see
        # app/runtime/published.py.
        row = torch.fft.fftfreq(image_size, 1 / image_size).round().long()
        self.register_buffer("squares", row[:, None] ** 2 + row[: image_size // 2 + 1] ** 2)  # [S, H]

    def forward(self, x: Tensor) -> Tensor:
        # There are no 16-bit FFTs of 112 numbers, and 16-bit rounding errors exceed the high frequencies.
        with torch.autocast(x.device.type, enabled=False):
            spectrum = torch.fft.rfft2(x.to(self.learnable_param.dtype))  # [B, 3, S, H]
            return torch.fft.irfft2(spectrum * self.gain(), s=x.shape[-2:])

    def gain(self) -> Tensor:
        """Return the factor of each bin of half a spectrum [3, S, H], frequency 0 first."""
        gain = torch.fft.ifftshift(self.learnable_param, (-2, -1))
        mirrored = gain.flip(-2, -1).roll((1, 1), (-2, -1))  # at k the value of `gain` at -k
        half = self.squares.shape[1]
        return 0.5 * (gain[..., :half] + mirrored[..., :half]) * self.mask()

    def mask(self) -> Tensor:
        """Return the fixed part of the gain [S, H]: below 1 near frequency 0, up to 1.77 at the highest (`vit`)."""
        distance = self.squares.to(self.learnable_param.dtype).sqrt() / (len(self.squares) / 2)
        return (distance / self.smoothness).clamp(min=1).masked_fill(self.squares <= 1, self.smoothness)

    def as_matrices(self) -> FourierMatrices:
        """Return the same filter with the current gain, for export: no FFT in ONNX works in all runtimes."""
        return FourierMatrices(self.gain().detach())


class FourierMatrices(nn.Module):
    """Filter by DFT matrices: [B, 3, S, S] -> the same; `gain` [3, S, H] applies to half a spectrum.

    It uses only products and sums of matrices, for any batch size. Signs are in the matrices, to avoid subtractions:
    readers of ONNX files take a subtraction and a product near the input for the normalisation of the input.
    """

    def __init__(self, gain: Tensor) -> None:
        super().__init__()
        size, half = gain.shape[-2:]
        place, column = torch.arange(size), torch.arange(half)
        turn = 2 * math.pi / size
        square = turn * (torch.outer(place, place) % size).double()  # drops whole turns while they are exact
        across = square[:, :half]
        # A column also stands for its mirror image, except the first column and, for an even size, the last.
        weight = (2 - ((column == 0) | (2 * column == size)).double())[:, None] / size**2
        for name, matrix in {
            "gain": gain,
            "cos": square.cos(),  # [S, S]: forward and back along the columns
            "sin": square.sin(),
            "minus_sin": -square.sin(),
            "to_real": across.cos(),  # [S, H]: along the rows, into the spectrum
            "to_imaginary": -across.sin(),
            "from_real": weight * across.cos().T,  # [H, S]: back from the spectrum
            "from_imaginary": -weight * across.sin().T,
        }.items():
            self.register_buffer(name, matrix.to(gain))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.gain.dtype)
            real, imaginary = x @ self.to_real, x @ self.to_imaginary  # [B, 3, S, H]
            real, imaginary = (
                (self.cos @ real + self.sin @ imaginary) * self.gain,
                (self.cos @ imaginary + self.minus_sin @ real) * self.gain,
            )
            real, imaginary = (
                self.cos @ real + self.minus_sin @ imaginary,
                self.cos @ imaginary + self.sin @ real,
            )
            return real @ self.from_real + imaginary @ self.from_imaginary
