"""A learned gain on the spectrum of an image (the Fourier transform layer of the CatFace fork of arcface_torch).

As published: FFT, shift, times a fixed mask, times a learned real gain, unshift, inverse FFT, real part. For real
images that is a filter with the point-symmetric part of the gain, ½ (gain(k) + gain(-k)): the other part only makes
the imaginary numbers that are thrown away. So half of the spectrum is enough, and that is what is computed here.

Letters: B batch, S side of the image, H = S // 2 + 1 columns of half a spectrum.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# The mask is this in the middle five bins and max(1, d / this) elsewhere, d the distance from the middle in half sides.
SMOOTHNESS = {"vit": 0.8, "iresnet": 1.0}


def fourier_layer(mask: str, image_size: int) -> nn.Module:
    """The layer that `backbone.fourier` asks for: with `none` one that does nothing."""
    return nn.Identity() if mask == "none" else FourierLayer(image_size, mask)


class FourierLayer(nn.Module):
    """Filtered images: [B, 3, S, S] -> the same, in 32 bits whatever autocast says.

    `mask` is that of the published `vit` or `iresnet`. The gain has one plane a colour, with frequency 0 in the middle.
    """

    def __init__(self, image_size: int, mask: str = "vit") -> None:
        super().__init__()
        self.smoothness = SMOOTHNESS[mask]
        self.learnable_param = nn.Parameter(torch.ones(3, image_size, image_size))  # the published name
        # Integers, not the mask itself: floating-point buffers are taken for BN's averages, and are averaged over
        # ranks. Stored, as it tells our files from the fork's: see app/runtime/published.py.
        row = torch.fft.fftfreq(image_size, 1 / image_size).round().long()
        self.register_buffer("squares", row[:, None] ** 2 + row[: image_size // 2 + 1] ** 2)  # [S, H]

    def forward(self, x: Tensor) -> Tensor:
        # There are no 16-bit FFTs of 112 numbers, and the high frequencies are smaller than their rounding.
        with torch.autocast(x.device.type, enabled=False):
            spectrum = torch.fft.rfft2(x.to(self.learnable_param.dtype))  # [B, 3, S, H]
            return torch.fft.irfft2(spectrum * self.gain(), s=x.shape[-2:])

    def gain(self) -> Tensor:
        """What each bin of half a spectrum is multiplied with [3, S, H], frequency 0 first."""
        gain = torch.fft.ifftshift(self.learnable_param, (-2, -1))
        mirrored = gain.flip(-2, -1).roll((1, 1), (-2, -1))  # at k what `gain` has at -k
        half = self.squares.shape[1]
        return 0.5 * (gain[..., :half] + mirrored[..., :half]) * self.mask()

    def mask(self) -> Tensor:
        """The fixed part of the gain [S, H]: below 1 near frequency 0 and up to 1.77 where both are highest (`vit`)."""
        distance = self.squares.to(self.learnable_param.dtype).sqrt() / (len(self.squares) / 2)
        return (distance / self.smoothness).clamp(min=1).masked_fill(self.squares <= 1, self.smoothness)

    def as_matrices(self) -> FourierMatrices:
        """The same filter, with the gain as it is now, for export: ONNX has no FFT that all runtimes know."""
        return FourierMatrices(self.gain().detach())


class FourierMatrices(nn.Module):
    """A filter by DFT matrices: [B, 3, S, S] -> the same; `gain` [3, S, H] is that of half a spectrum.

    Only products and sums of matrices, of any batch size. No subtraction: signs are in the matrices, as readers of
    ONNX files take a subtraction and a product near the input for its normalisation.
    """

    def __init__(self, gain: Tensor) -> None:
        super().__init__()
        size, half = gain.shape[-2:]
        place, column = torch.arange(size), torch.arange(half)
        turn = 2 * math.pi / size
        square = turn * (torch.outer(place, place) % size).double()  # whole turns taken off while they are exact
        across = square[:, :half]
        # A column stands for its mirror image too, but for the first and, of an even size, the last.
        weight = (2 - ((column == 0) | (2 * column == size)).double())[:, None] / size**2
        for name, matrix in {
            "gain": gain,
            "cos": square.cos(),  # [S, S]: both ways along the columns
            "sin": square.sin(),
            "minus_sin": -square.sin(),
            "to_real": across.cos(),  # [S, H]: along the rows, to the spectrum
            "to_imaginary": -across.sin(),
            "from_real": weight * across.cos().T,  # [H, S]: and back
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
