"""Views: each change has its stated effect, values stay in range, and one seed gives one view."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image

from app.config import AugmentConfig
from app.data.augment import Augment, to_float
from app.data.jpeg import jpeg

STILL = AugmentConfig(
    crop_scale=[1.0, 1.0], crop_ratio=[1.0, 1.0], flip=0, jitter=0, gray=0, blur=0, jpeg=0, noise=0, cutout=0
)


def images(count: int = 4) -> torch.Tensor:
    rng = np.random.default_rng(0)
    smooth = rng.integers(40, 215, (count, 7, 7, 3)).repeat(16, axis=1).repeat(16, axis=2)
    return torch.from_numpy(smooth.astype(np.uint8))


def view(size: int = 112, seed: int = 0, **changes: object) -> torch.Tensor:
    config = dataclasses.replace(STILL, **changes)
    return Augment(config, size)(images(), torch.Generator().manual_seed(seed))


def test_without_changes_a_view_is_the_image() -> None:
    assert torch.allclose(view(), to_float(images(), 112), atol=1e-5)


def test_to_float_spans_minus_one_to_one_and_puts_colours_first() -> None:
    x = to_float(torch.tensor([[[[0, 255, 51]]]], dtype=torch.uint8).expand(1, 112, 112, 3), 112)
    assert x.shape == (1, 3, 112, 112)
    assert torch.allclose(x[0, :, 5, 5], torch.tensor([-1.0, 1.0, -0.6]))


@pytest.mark.parametrize("size", [112, 64, 33])
def test_the_strongest_changes_stay_in_range_finite_and_channels_last(size: int) -> None:
    x = Augment(
        AugmentConfig(rotation_deg=20, jitter=1, brightness=1, contrast=1, gray=0.5, blur=1, noise=1, cutout=1), size
    )(images(), torch.Generator().manual_seed(0))
    assert x.shape == (4, 3, size, size)
    assert torch.isfinite(x).all()
    assert x.min() >= -1
    assert x.max() <= 1
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_one_seed_gives_one_view_and_another_a_different_one() -> None:
    config = AugmentConfig()
    first, again, other = (Augment(config, 112)(images(), torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_flip_mirrors_left_and_right() -> None:
    assert torch.allclose(view(flip=1.0), to_float(images(), 112).flip(3), atol=1e-5)


def test_gray_makes_the_three_colours_equal() -> None:
    x = view(gray=1.0)
    assert torch.allclose(x[:, 0], x[:, 1], atol=1e-5)
    assert torch.allclose(x[:, 0], x[:, 2], atol=1e-5)


def test_blur_of_a_given_width_is_the_gaussian_of_that_width() -> None:
    sigma = 1.0
    x, y = to_float(images(), 112), view(blur=1.0, blur_sigma_px=[sigma, sigma])
    offsets = torch.arange(-2, 3.0)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    expected = sum(kernel[i] * kernel[j] * x.roll((i - 2, j - 2), (2, 3)) for i in range(5) for j in range(5))
    assert torch.allclose(y[:, :, 5:-5, 5:-5], expected[:, :, 5:-5, 5:-5], atol=1e-4)


def test_cutout_greys_a_square_of_the_given_side() -> None:
    changed = (view(cutout=1.0, cutout_side=[0.25, 0.25]) == 0).all(1).float().sum((1, 2))
    assert (changed <= (112 * 0.25 + 1) ** 2).all()
    assert (changed > 0).all()


def test_contrast_keeps_the_mean_luma() -> None:
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    before, after = to_float(images(), 112), view(jitter=1.0, brightness=0.0, saturation=0.0, hue=0.0, contrast=0.3)
    assert not torch.allclose(before, after, atol=0.01)
    assert torch.allclose((before * weights).sum(1).mean((1, 2)), (after * weights).sum(1).mean((1, 2)), atol=0.02)


def photograph(side: int = 112) -> np.ndarray:
    """An image of smooth shapes, an edge and texture [side, side, 3]."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[0:side, 0:side] / side
    waves = np.stack([np.sin(9 * x + 4 * y), np.cos(7 * y), np.sin(12 * x * y)], 2)
    edge = ((x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.08)[..., None] * np.array([60, -40, 20])
    return np.clip(128 + 70 * waves + edge + rng.normal(0, 6, (side, side, 3)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("quality", "side"), [(40, 112), (75, 112), (95, 112), (60, 50)])
def test_jpeg_is_what_a_jpeg_file_gives_back(quality: int, side: int) -> None:
    image = photograph(side)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling=2)
    expected = np.asarray(Image.open(file)).astype(np.float64)
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    got = (jpeg(x, torch.tensor([float(quality)]))[0].permute(1, 2, 0) * 255).numpy()
    lost = np.abs(expected - image).mean()
    assert np.abs(got - expected).mean() < 0.2 * lost


def test_jpeg_changes_its_share_of_the_images_alone() -> None:
    every = torch.from_numpy(np.stack([photograph()] * 8))
    config = dataclasses.replace(STILL, jpeg=0.5, jpeg_quality=[30, 30])
    changed = (
        (Augment(config, 112)(every, torch.Generator().manual_seed(0)) - to_float(every, 112)).abs().amax((1, 2, 3))
    )
    assert 0 < (changed > 0.05).sum() < 8
    assert (changed[changed < 0.05] < 1e-4).all()


def test_a_turn_of_the_hue_keeps_brightness_and_a_whole_turn_everything() -> None:
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    only = {"jitter": 1.0, "brightness": 0.0, "saturation": 0.0, "contrast": 0.0}
    before, after = to_float(images(), 112), view(**only, hue=0.06)
    assert not torch.allclose(before, after, atol=0.01)
    assert torch.allclose((before * weights).sum(1), (after * weights).sum(1), atol=0.03)


def mixed(every: torch.Tensor, seed: int = 0, **changes: object) -> torch.Tensor:
    """Images in [0, 1] after these changes alone."""
    config = dataclasses.replace(STILL, **changes)
    return (Augment(config, every.shape[1])(every, torch.Generator().manual_seed(seed)) + 1) / 2


def by_hand(image: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    """Mix amplitudes in the middle half of the whole, shifted spectrum, colour by colour [S, S, 3]."""
    result = np.empty(image.shape)
    side = len(image)
    frequency = np.abs(np.arange(side) - side // 2)
    low = (frequency[:, None] < side / 4) & (frequency < side / 4)
    for colour in range(3):
        mine, theirs = (np.fft.fftshift(np.fft.fft2(i[..., colour] / 255)) for i in (image, other))
        amplitude = np.where(low, (1 - share) * np.abs(mine) + share * np.abs(theirs), np.abs(mine))
        result[..., colour] = np.fft.ifft2(np.fft.ifftshift(amplitude * np.exp(1j * np.angle(mine)))).real
    return np.clip(result, 0, 1)


@pytest.mark.parametrize("side", [112, 33])
def test_amplitude_mix_is_that_of_whole_spectra_and_the_partner_is_another_image(side: int) -> None:
    every = np.stack([photograph(side), photograph(side)[::-1], np.roll(photograph(side), 20, 1) // 2 + 60])
    got = mixed(torch.from_numpy(every.copy()), amplitude_mix=1.0, amplitude_mix_alpha=0.7).permute(0, 2, 3, 1).numpy()
    generator = torch.Generator().manual_seed(0)
    share = 0.7 * torch.rand(3, 1, 1, 1, generator=generator).flatten().double().numpy()
    for i in range(3):
        candidates = [by_hand(every[i], every[j], share[i]) for j in range(3) if j != i]
        assert min(np.abs(got[i] - candidate).max() for candidate in candidates) < 1e-4


def test_amplitude_mix_changes_its_share_of_the_images_alone() -> None:
    every = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3)).astype(np.uint8))
    changed = (mixed(every, amplitude_mix=0.5) - every.permute(0, 3, 1, 2) / 255).abs().amax((1, 2, 3)) > 1e-3
    assert 0 < changed.sum() < 16


def test_amplitude_mix_of_nothing_of_the_other_or_without_another_is_the_image() -> None:
    assert torch.allclose(view(amplitude_mix=1.0, amplitude_mix_alpha=0.0), to_float(images(), 112), atol=1e-4)
    assert torch.allclose(mixed(images(1), amplitude_mix=1.0) * 2 - 1, to_float(images(1), 112), atol=1e-4)


def test_without_amplitude_mix_its_strength_is_never_looked_at() -> None:
    first, other = (dataclasses.replace(AugmentConfig(), amplitude_mix_alpha=alpha) for alpha in (0.1, 0.9))
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    views = [Augment(c, 112)(images(), g) for c, g in zip((first, other), generators, strict=True)]
    assert torch.equal(*views)
    assert torch.equal(generators[0].get_state(), generators[1].get_state())
