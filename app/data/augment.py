"""Random views of images, a whole batch at once on its own device.

All random numbers of a batch come from one generator on the CPU (only the noise's many from one on the device, seeded
by it), so the same seed gives the same views, and a resumed run repeats them exactly.

Letters: B batch, S side of the input, T side of the output.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from app.config import AugmentConfig
from app.data.jpeg import jpeg

GRAY = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma
LOW = 0.25  # of a period a pixel: amplitudes below it in both directions, the middle half of each side, are mixed
TO_YIQ = (GRAY, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))  # NTSC


def to_float(images: Tensor, size: int) -> Tensor:
    """uint8 [B, S, S, 3] -> float [B, 3, size, size] in [-1, 1], resampled when the size differs."""
    x = images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
    if x.shape[-1] != size:
        x = F.interpolate(x, (size, size), mode="bilinear", align_corners=False, antialias=True)
    return x


class Augment:
    """One random view of each image: uint8 [B, S, S, 3] -> float [B, 3, T, T] in [-1, 1], channels last in memory."""

    def __init__(self, config: AugmentConfig, size: int) -> None:
        self.config = config
        self.size = size

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        c = self.config
        draw = _Draw(len(images), generator, images.device)
        x = images.permute(0, 3, 1, 2).float().div_(255.0)  # [B, 3, S, S] in [0, 1]; colour changes are defined there
        if c.amplitude_mix:
            x = self._amplitude_mix(x, draw)
        x = self._crop(x, draw)
        x = self._colour(x, draw)
        if c.blur:
            x = self._blur(x, draw)
        if c.jpeg:
            x = self._jpeg(x, draw)
        x = x.mul_(2.0).sub_(1.0)
        if c.noise:
            std = draw.where(c.noise, draw.uniform(0.0, c.noise_std), 0.0)
            x = x + std * draw.normal(x.shape)
        if c.cutout:
            x = self._cutout(x, draw)
        return x.clamp_(-1.0, 1.0).contiguous(memory_format=torch.channels_last)

    def _amplitude_mix(self, x: Tensor, draw: _Draw) -> Tensor:
        """Low frequencies take over some of the amplitudes of another image of the batch, for its share of the images.

        Phases stay, and with them what is where; light, colour and contrast change (TransFace, arXiv:2308.10133).
        """
        c = self.config
        share = draw.uniform(0.0, c.amplitude_mix_alpha)
        others = draw.others()
        chosen = draw.which(c.amplitude_mix)
        spectrum = torch.fft.rfft2(x)  # [B, 3, S, S // 2 + 1]
        own, amplitude = spectrum[chosen], spectrum.abs()
        row, column = torch.fft.fftfreq(x.shape[-2], device=x.device), torch.fft.rfftfreq(x.shape[-1], device=x.device)
        low = (row[:, None].abs() < LOW) & (column < LOW)
        mixed = torch.lerp(amplitude[chosen], amplitude[others[chosen]], share[chosen] * low)
        x[chosen] = torch.fft.irfft2(torch.polar(mixed, own.angle()), s=x.shape[-2:]).clamp_(0.0, 1.0)
        return x

    def _crop(self, x: Tensor, draw: _Draw) -> Tensor:
        """Crop, flip and rotate in one resampling, [B, 3, S, S] -> [B, 3, T, T]."""
        c = self.config
        area = draw.uniform(*c.crop_scale)
        ratio = draw.uniform(math.log(c.crop_ratio[0]), math.log(c.crop_ratio[1])).exp()
        width, height = (area * ratio).sqrt().clamp(max=1.0), (area / ratio).sqrt().clamp(max=1.0)
        # Crop centres such that the crop stays inside: in [-(1 - width), 1 - width] of the half side.
        x0, y0 = draw.uniform(-1.0, 1.0) * (1 - width), draw.uniform(-1.0, 1.0) * (1 - height)
        angle = draw.uniform(-c.rotation_deg, c.rotation_deg) * (math.pi / 180)
        mirror = draw.where(c.flip, -1.0, 1.0)
        cos, sin = angle.cos(), angle.sin()
        theta = torch.stack(
            [
                torch.stack([mirror * width * cos, -height * sin, x0], -1),
                torch.stack([mirror * width * sin, height * cos, y0], -1),
            ],
            -2,
        ).reshape(len(x), 2, 3)
        grid = F.affine_grid(theta, [len(x), 3, self.size, self.size], align_corners=False)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)

    def _colour(self, x: Tensor, draw: _Draw) -> Tensor:
        """Brightness, contrast, saturation and hue, then grey, each for its share of the images."""
        c = self.config
        jittered = draw.where(c.jitter, 1.0, 0.0)

        def factor(strength: float) -> Tensor:
            return 1 + jittered * draw.uniform(-strength, strength)

        x = x * factor(c.brightness)
        average = _luma(x).mean((2, 3), keepdim=True)
        x = average + (x - average) * factor(c.contrast)
        luma = _luma(x)
        saturation = draw.where(c.gray, 0.0, 1.0) * factor(c.saturation)
        x = luma + (x - luma) * saturation
        if c.hue:
            x = _turn_hue(x, jittered * draw.uniform(-c.hue, c.hue))
        return x.clamp_(0.0, 1.0)

    def _blur(self, x: Tensor, draw: _Draw) -> Tensor:
        """Gaussian blur with a width of its own for each image; a width of 0 is the identity."""
        c = self.config
        sigma = draw.where(c.blur, draw.uniform(*c.blur_sigma_px), 1e-3).flatten()  # [B]
        radius = math.ceil(2 * c.blur_sigma_px[1])
        offset = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
        kernel = torch.exp(-0.5 * (offset / sigma[:, None]) ** 2)
        kernel = kernel / kernel.sum(1, keepdim=True)  # [B, 2 radius + 1]
        b, channels, height, width = x.shape
        # One group per image: a convolution with a kernel of its own for each.
        y = F.pad(x, (radius,) * 4, mode="reflect").transpose(0, 1)  # [3, B, …]
        y = F.conv2d(y, kernel[:, None, :, None], groups=b)
        y = F.conv2d(y, kernel[:, None, None, :], groups=b)
        return y.transpose(0, 1).reshape(b, channels, height, width)

    def _jpeg(self, x: Tensor, draw: _Draw) -> Tensor:
        """As read from a JPEG file, for its share of the images."""
        quality = draw.uniform(*self.config.jpeg_quality).flatten()
        chosen = draw.which(self.config.jpeg)  # known without asking the device, so only these are worked on
        x[chosen] = jpeg(x[chosen], quality[chosen])
        return x

    def _cutout(self, x: Tensor, draw: _Draw) -> Tensor:
        """A grey square somewhere in its share of the images."""
        c = self.config
        half = draw.where(c.cutout, draw.uniform(*c.cutout_side), 0.0) / 2
        cx, cy = draw.uniform(0.0, 1.0), draw.uniform(0.0, 1.0)
        place = (torch.arange(self.size, device=x.device) + 0.5) / self.size
        inside = ((place[None, None, :, None] - cy).abs() < half) & ((place[None, None, None, :] - cx).abs() < half)
        return x.masked_fill(inside, 0.0)


class _Draw:
    """Random numbers for a batch, as [B, 1, 1, 1] tensors on `device`; always drawn, so none shifts another."""

    def __init__(self, count: int, generator: Generator, device: torch.device) -> None:
        self.count, self.generator, self.device = count, generator, device

    def uniform(self, low: float, high: float) -> Tensor:
        u = torch.rand(self.count, 1, 1, 1, generator=self.generator)
        return (low + (high - low) * u).to(self.device)

    def where(self, probability: float, then: Tensor | float, otherwise: float) -> Tensor:
        chosen = self.uniform(0.0, 1.0) < probability
        return torch.where(chosen, torch.as_tensor(then, device=self.device), otherwise)

    def which(self, probability: float) -> Tensor:
        """The numbers of the images that are chosen."""
        return (torch.rand(self.count, generator=self.generator) < probability).nonzero().flatten().to(self.device)

    def others(self) -> Tensor:
        """For each image the number of another one; of a single image its own."""
        steps = torch.randint(max(1, self.count - 1), (self.count,), generator=self.generator) + 1
        return ((torch.arange(self.count) + steps) % self.count).to(self.device)

    def normal(self, shape: torch.Size) -> Tensor:
        """Too many to be drawn on the CPU and sent over; repeatable on one kind of device."""
        generator = Generator(self.device).manual_seed(int(torch.randint(2**62, (), generator=self.generator)))
        return torch.randn(shape, generator=generator, device=self.device)


def _turn_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the chroma plane of YIQ by `turns` [B, 1, 1, 1] of a whole turn; brightness stays. [B, 3, H, W]"""
    to_yiq = x.new_tensor(TO_YIQ)
    angle = turns.flatten() * (2 * math.pi)
    turn = torch.zeros(len(x), 3, 3, device=x.device)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = angle.cos()
    turn[:, 1, 2], turn[:, 2, 1] = -angle.sin(), angle.sin()
    return torch.einsum("bij,bjhw->bihw", torch.linalg.inv(to_yiq) @ turn @ to_yiq, x)


def _luma(x: Tensor) -> Tensor:
    """[B, 3, H, W] -> [B, 1, H, W]"""
    return (x * x.new_tensor(GRAY)[:, None, None]).sum(1, keepdim=True)
