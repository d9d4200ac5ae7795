"""Layers with faster gradients on a CPU (3x3 convolution, PReLU), and a 1x1 convolution that avoids a bug in oneDNN.

All are torch's layers, with the same parameters, names and outputs. The first two compute gradients differently, and
only where it is faster: on a CPU, in 32 or 64 bits, in channels_last, outside autocast and torch.compile. Everywhere
else, including every GPU, they use torch's gradients. Second-order gradients are not supported.

- Without AVX-512, oneDNN's weight gradient of a channels_last convolution runs at a third of the speed of its forward
  pass. Here it is one matrix product: output gradients times the 3x3 windows of the input. The windows are laid out
  chunk by chunk, small enough to stay in the cache.
- torch's PReLU gradient is a loop over single elements that writes a second tensor of the size of its input. Here it is
  four vector operations a chunk.

Letters: B batch, C channels, H/W height and width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LAST = torch.channels_last
VECTOR = 16  # 32-bit numbers in the widest vector of a CPU, that of AVX-512
CHUNK_BYTES = 8 * 2**20  # per thread: fits the last-level cache, and is enough work to outweigh synchronising threads


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution with padding 1 and no bias: [B, C_in, H, W] -> [B, C_out, H/stride, W/stride], rounded up."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__(channels_in, channels_out, 3, stride, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # The same rule as torch's: one of the two in channels_last is enough.
        if (
            _pays(x, self.weight)
            and (x.is_contiguous(memory_format=LAST) or self.weight.is_contiguous(memory_format=LAST))
            and not onednn_is_fast(x.dtype, self.in_channels, torch.backends.cpu.get_cpu_capability())
        ):
            return _Conv3x3.apply(x.contiguous(memory_format=LAST), self.weight, self.stride[0])
        return super().forward(x)


class Conv1x1(nn.Conv2d):
    """A 1x1 convolution without bias: [B, C_in, H, W] -> [B, C_out, H/stride, W/stride], rounded up.

    If strided, oneDNN's weight gradient writes out of bounds where C_in is less than a vector of the CPU
    (uxlfoundation/oneDNN#6035): a crash, a hang, or wrong numbers. So the forward pass selects the needed pixels first.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__(channels_in, channels_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        stride = self.stride[0]
        wants_gradient = torch.is_grad_enabled() and self.weight.requires_grad
        if stride > 1 and self.in_channels < VECTOR and x.device.type == "cpu" and wants_gradient:
            return F.conv2d(x[:, :, ::stride, ::stride], self.weight)
        return super().forward(x)


class PReLU(nn.PReLU):
    """x where it is positive, elsewhere x times a learned slope per channel: [B, C, H, W] -> the same."""

    def forward(self, x: Tensor) -> Tensor:
        if _pays(x, self.weight) and x.is_contiguous(memory_format=LAST):
            return _PReLU.apply(x, self.weight)
        return super().forward(x)


def onednn_is_fast(dtype: torch.dtype, channels_in: int, capability: str) -> bool:
    """Whether oneDNN's weight gradient of a 3x3 convolution is the faster one, on a CPU of this `capability` of torch.

    It is with AVX-512, in 32 bits. With less channels than a vector it has a bug for other convolutions; see Conv1x1.
    """
    return capability.startswith("AVX512") and dtype == torch.float32 and channels_in >= VECTOR


def _pays(x: Tensor, weight: Tensor) -> bool:
    """Whether the gradients below are applicable and needed."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype
        and x.dtype in (torch.float32, torch.float64)
        and x.ndim == 4
        and weight.requires_grad
        and torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


class _Conv3x3(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return F.conv2d(x, weight, None, stride, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=LAST)
        of_input = None
        if ctx.needs_input_grad[0]:
            stride = [ctx.stride, ctx.stride]
            only_input = [True, False, False]
            of_input, _, _ = torch.ops.aten.convolution_backward(
                grad, x, weight, None, stride, [1, 1], [1, 1], False, [0, 0], 1, only_input
            )
        return of_input, weight_gradient(x, grad, ctx.stride), None


def weight_gradient(x: Tensor, grad: Tensor, stride: int) -> Tensor:
    """Return the gradient of a 3x3 convolution's weight [C_out, C_in, 3, 3], from its input and its output's gradient.

    x [B, C_in, H, W] and grad [B, C_out, H/stride, W/stride] in channels_last; so is the result.
    """
    x, grad = x.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1)  # [B, H, W, C]: the memory order
    batch, height, width, c_in = x.shape
    _, rows, columns, c_out = grad.shape
    total = x.new_zeros(c_out, 9 * c_in)
    # A chunk is several rows of one image or, where images are small, several whole images.
    fitting = in_chunk(columns * 9 * c_in * x.element_size())
    images = max(1, fitting // rows)
    rows_a_chunk = min(fitting, rows)
    padded = x.new_zeros(images, height + 2, width + 2, c_in)  # the border stays zero
    windows = x.new_empty(images, rows_a_chunk, columns, 3, 3 * c_in)
    of_image, of_row, of_column, _ = padded.stride()
    strides = (of_image, stride * of_row, stride * of_column, of_row, 1)
    for i in range(0, batch, images):
        b = min(images, batch - i)
        padded[:b, 1:-1, 1:-1] = x[i : i + b]
        for row in range(0, rows, rows_a_chunk):
            r = min(rows_a_chunk, rows - row)
            # Three adjacent pixels are contiguous in memory: a window is three runs of 3 * C_in numbers.
            seen = padded[:b, row * stride :].as_strided((b, r, columns, 3, 3 * c_in), strides)
            laid_out = windows[:b, :r].copy_(seen).view(-1, 9 * c_in)
            total.addmm_(grad[i : i + b, row : row + r].reshape(-1, c_out).T, laid_out)
    return total.view(c_out, 3, 3, c_in).permute(0, 3, 1, 2)


def in_chunk(item_bytes: int) -> int:
    """Return how many items of this size a chunk holds."""
    return max(1, CHUNK_BYTES * torch.get_num_threads() // item_bytes)


class _PReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x, slope)
        return F.prelu(x, slope)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, slope = ctx.saved_tensors
        of_input = torch.empty_like(x)
        of_slope = torch.zeros_like(slope)
        # [B * H * W, C]: the memory order
        x, grad, out = (t.permute(0, 2, 3, 1).flatten(0, 2) for t in (x, grad.contiguous(memory_format=LAST), of_input))
        size = in_chunk(x.shape[1] * x.element_size())
        for x_, grad_, out_ in zip(x.split(size), grad.split(size), out.split(size), strict=True):
            positive = torch.ops.aten.threshold_backward(grad_, x_, 0)  # the gradient where x is above 0, else 0
            negative = grad_ - positive
            torch.addcmul(positive, negative, slope, out=out_)
            of_slope += negative.mul_(x_).sum(0)
        return of_input, of_slope
