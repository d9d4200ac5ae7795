"""A backbone as an ONNX file in which every number is fp32, for runtimes old and new.

torch's newer exporter begins at opset 18, which the runtime of the MFR challenge (onnxruntime 1.8) does not know. Its
older one writes opset 11, so that one is used, and what opset 11 has no word for is put into plainer ones first:

- normalising and resampling are the first nodes, so the file takes 112 x 112 images whatever the network sees;
- resampling is two matrix products: it is linear and works on rows and columns apart, and ONNX has no antialiasing
  below opset 18;
- attention is two matrix products and a softmax (the older exporter knows it from opset 14 on);
- a layer with Fourier transforms gives its equal in matrix products (`as_matrices`).

BN behind a convolution is folded into it, which the exporter does by itself; it changes the last digits of a number.

Letters: N images, S side that the network sees, D embedding size.
"""

from __future__ import annotations

import copy
import io
import math
import warnings
from collections.abc import Sequence
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from app.data.dataset import SIDE
from app.errors import WrongUse

INPUT, OUTPUT, BATCH = "input", "embedding", "N"
OPSETS = range(11, 21)  # the older exporter ends at 20
HALF_RANGE = 127.5  # (x - 127.5) / 127.5 is in [-1, 1]
MOST_BYTES = 2**31 - 2**24  # of a protobuf message, less room for the graph itself


def to_onnx(backbone: nn.Module, *, image_size: int, opset: int, inside: bool) -> bytes:
    """The file's content: images fp32 [N, 3, 112, 112] RGB -> embeddings fp32 [N, D], N symbolic.

    `inside`: pixels are 0 … 255 and normalised by the first nodes, Sub and Mul; else they are given in [-1, 1].
    The backbone takes [N, 3, S, S] with S = `image_size`, and stays as it is. Raises WrongUse.
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
        warnings.simplefilter("ignore", DeprecationWarning)  # of the older exporter itself: see above
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
    model = onnx.load_from_string(file.getvalue())
    tidy(model, inside)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


class _Exported(nn.Module):
    """The backbone with what stands before it in the file."""

    def __init__(self, backbone: nn.Module, image_size: int, inside: bool) -> None:
        super().__init__()
        self.backbone = backbone.float()
        self.inside, self.resampled = inside, image_size != SIDE
        # Buffers become weights of the file; numbers would become nodes that push the first real ones back.
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
    """The matrix [new_size, size] that resamples a column of pixels as the training's feed does (`to_float`)."""
    each_pixel = torch.eye(size)[None, None]
    kind: dict[str, Any] = {"mode": "bilinear", "align_corners": False, "antialias": True}
    return F.interpolate(each_pixel, (new_size, size), **kind)[0, 0]


def in_plain_words(backbone: nn.Module) -> nn.Module:
    """A copy in which every layer that knows its equal in matrix products is replaced by it."""
    plain = copy.deepcopy(backbone)
    for name, module in list(plain.named_modules()):
        if hasattr(module, "as_matrices"):
            plain.set_submodule(name, module.as_matrices())
    return plain


class _AttentionInPlainWords(TorchFunctionMode):
    """While it is active, `scaled_dot_product_attention` is written out, as its documentation defines it."""

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def attention(q: Tensor, k: Tensor, v: Tensor, *, dropout_p: float = 0.0, scale: float | None = None) -> Tensor:
    """Each query's mean of the values [..., L, V], weighted by softmax(q kᵀ scale); q, k [..., L, E].

    Without masks, which no backbone here uses. A mask, or dropout, is refused rather than left out.
    """
    assert dropout_p == 0.0, "dropout belongs to training"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # that E becomes a constant: it is one
        scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    weight = q @ k.transpose(-2, -1) * scale
    return torch.softmax(weight, -1) @ v


def tidy(model: onnx.ModelProto, inside: bool) -> None:
    """Leave the nodes that compute something, and give them names.

    The exporter writes a node for each weight that equals another one, before all others. The challenge's server looks
    for nodes named Sub… and Mul… among the first eight to tell whether a file normalises its input: those two have
    such names, and no other node has, whatever it does.
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
