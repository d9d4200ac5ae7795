"""Export a backbone as an ONNX file with fp32 numbers, for old and new runtimes.

torch's newer exporter starts at opset 18, which the MFR challenge's onnxruntime 1.8 does not support. So the older
exporter is used, which can write opset 11, and operations that opset 11 lacks are replaced by simpler ones first:

- Normalisation and resampling are the first nodes, so the file takes 112 x 112 images for any network.
- Resampling becomes two matrix products: it is linear and separable, and ONNX has no antialiasing below opset 18.
- Attention becomes two matrix products and a softmax (the older exporter supports it from opset 14 on).
- A layer with Fourier transforms provides an equivalent of matrix products (`as_matrices`).

The exporter folds BN into the convolution before it, which changes the last digits of a number.

Letters: N images, S side of the network's input, D embedding size.
"""

from __future__ import annotations

import copy
import io
import math
import re
import warnings
from collections.abc import Sequence
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.onnx.errors import OnnxExporterError
from torch.overrides import TorchFunctionMode

from app.data.arrays import SIDE
from app.errors import Failed, WrongUse

INPUT, OUTPUT, BATCH = "input", "embedding", "N"
OPSETS = range(11, 21)  # the older exporter ends at 20
HALF_RANGE = 127.5  # (x - 127.5) / 127.5 is in [-1, 1]
MOST_BYTES = 2**31 - 2**24  # of a protobuf message, less room for the graph itself


def to_onnx(backbone: nn.Module, *, image_size: int, opset: int, inside: bool) -> bytes:
    """Return the file's content: images fp32 [N, 3, 112, 112] RGB -> embeddings fp32 [N, D], N symbolic.

    `inside`: the input is 0 … 255, and the first nodes, Sub and Mul, normalise it; else it is in [-1, 1]. The backbone
    takes [N, 3, S, S] with S = `image_size` and is not changed. Raises WrongUse if it exceeds 2 GiB, and
    Failed for a layer that ONNX lacks.
    """
    size_bytes = sum(t.nbytes for t in backbone.state_dict().values())
    if size_bytes > MOST_BYTES:
        raise WrongUse(
            f"the network's {size_bytes / 2**30:.1f} GiB do not fit into one ONNX file, which holds 2 GiB; "
            "give a smaller backbone, such as iresnet200"
        )
    network = _Exported(in_plain_words(backbone), image_size, inside).eval()
    file = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", DeprecationWarning)  # the older exporter is deprecated, see above
        torch._C._jit_set_onnx_log_output_stream("stderr")  # torch shows the graph of a network that it cannot write
        try:
            torch.onnx.export(
                network,
                (torch.zeros(2, 3, SIDE, SIDE),),
                file,
                dynamo=False,
                opset_version=opset,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_axes={INPUT: {0: BATCH}, OUTPUT: {0: BATCH}},
            )
        except OnnxExporterError as error:
            why = re.split(r"\.? (?:Please|\[Caused)", str(error).splitlines()[0])[0]
            raise Failed(
                f"torch cannot write this network as ONNX: {why}; use another layer there, or another opset, such as "
                "opset=17"
            ) from error
    model = onnx.load_from_string(file.getvalue())
    tidy(model, inside)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


class _Exported(nn.Module):
    """The backbone with normalisation and resampling before it."""

    def __init__(self, backbone: nn.Module, image_size: int, inside: bool) -> None:
        super().__init__()
        self.backbone = backbone.float()
        self.inside, self.resampled = inside, image_size != SIDE
        # Buffers become weights of the file; plain numbers would become nodes before Sub and Mul.
        self.register_buffer("middle", torch.tensor(HALF_RANGE))
        self.register_buffer("scale", torch.tensor(1 / HALF_RANGE))
        self.register_buffer("rows", resampling(SIDE, image_size))
        self.register_buffer("columns", resampling(SIDE, image_size).T.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        if self.inside:
            x = (x - self.middle) * self.scale
        if self.resampled:
            x = self.rows @ x @ self.columns
        with _AttentionInPlainWords():
            return self.backbone(x)


def resampling(size: int, new_size: int) -> Tensor:
    """The matrix [new_size, size] that resamples a column of pixels as `to_float` does in training."""
    each_pixel = torch.eye(size)[None, None]
    kind: dict[str, Any] = {"mode": "bilinear", "align_corners": False, "antialias": True}
    return F.interpolate(each_pixel, (new_size, size), **kind)[0, 0]


def in_plain_words(backbone: nn.Module) -> nn.Module:
    """Return a copy in which each layer with `as_matrices` is replaced by its equivalent of matrix products."""
    plain = copy.deepcopy(backbone)
    for name, module in list(plain.named_modules()):
        if hasattr(module, "as_matrices"):
            plain.set_submodule(name, module.as_matrices())
    return plain


class _AttentionInPlainWords(TorchFunctionMode):
    """While active, replace `scaled_dot_product_attention` by its documented definition."""

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def attention(q: Tensor, k: Tensor, v: Tensor, *, dropout_p: float = 0.0, scale: float | None = None) -> Tensor:
    """The mean of the values [..., L, V] for each query, weighted by softmax(q kᵀ scale); q, k [..., L, E].

    No backbone here uses masks. A mask or dropout raises an error instead of being ignored.
    """
    assert dropout_p == 0.0, "dropout belongs to training"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # E becomes a constant, which is correct
        scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    weight = q @ k.transpose(-2, -1) * scale
    return torch.softmax(weight, -1) @ v


def tidy(model: onnx.ModelProto, inside: bool) -> None:
    """Remove nodes that only copy a weight, and name the others.

    The exporter writes an Identity node, before all others, for each weight that equals another one. The challenge's
    server decides whether a file normalises its input by nodes named Sub… and Mul… among the first eight. Only the two
    normalising nodes get such names.
    """
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    same = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Identity" and n.input[0] in weights}
    nodes = [node for node in graph.node if node.output[0] not in same]
    assert not inside or [node.op_type for node in nodes[:2]] == ["Sub", "Mul"]
    for place, node in enumerate(nodes):
        node.name = f"{node.op_type}_pixels" if inside and place < 2 else f"node_{place}_{node.op_type}"
        node.input[:] = [same.get(name, name) for name in node.input]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.name = "sniperface"
    model.producer_name, model.producer_version = "sniperface", ""
