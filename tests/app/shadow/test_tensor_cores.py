"""The emulated tensor cores round as a GPU's do: once, at the end."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.app.shadow.tensor_cores import TensorCores


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_products_are_those_of_float64_rounded_once(half: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 16, 9, 9, generator=generator).to(half).requires_grad_()
    w = torch.randn(8, 16, 3, 3, generator=generator).to(half).requires_grad_()
    with TensorCores():
        y = F.conv2d(x, w, padding=1)
        y.backward(torch.ones_like(y))
    exact_x, exact_w = (t.detach().double().requires_grad_() for t in (x, w))
    exact = F.conv2d(exact_x, exact_w, padding=1)
    exact.backward(torch.ones_like(exact))
    for ours, theirs in ((y, exact), (x.grad, exact_x.grad), (w.grad, exact_w.grad)):
        assert ours.dtype == half
        unit = torch.finfo(half).eps * theirs.abs()
        assert ((ours.double() - theirs).abs() <= 0.51 * unit + 1e-4 * theirs.abs().max()).all()


def test_what_16_bits_cannot_hold_overflows_and_underflows() -> None:
    with TensorCores(), torch.autocast("cpu", torch.float16):
        large = torch.full((4, 300), 200.0) @ torch.full((300, 4), 2.0)
        small = torch.full((4, 1), 2.0**-14) @ torch.full((1, 4), 2.0**-12)
    assert large.isinf().all()
    assert (small == 0).all()


def test_products_in_32_bits_are_left_alone() -> None:
    a, b = torch.randn(5, 7), torch.randn(7, 3)
    with TensorCores():
        assert torch.equal(a @ b, torch.mm(a, b))
        assert (a @ b).dtype == torch.float32
