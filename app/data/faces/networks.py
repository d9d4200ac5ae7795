"""The three networks of MTCNN (Zhang et al. 2016), run by onnxruntime with the weights of the package mtcnn.

Only the package's three files of weights are read; its code, which needs TensorFlow, is not imported. The networks are
written down here, become ONNX graphs in memory and run on one thread each: processes are the unit of parallel work.
The package and its weights are under the MIT licence.

Letters: N images, H and W their sides.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from app.errors import WrongUse

PACKAGE = "mtcnn"
VERSION = "1.0.0"
OPSET, IR_VERSION = 13, 8  # what every onnxruntime of the last years reads
FATAL_ONLY = 4  # log level; errors are also raised
# The files of weights are pickles: a file with another hash is not opened.
SHA256 = {
    "pnet": "ea6b0c3e685ebee3165326ad6484acc95f2ef78f1c94fbf40a55704fa989f7b5",
    "rnet": "cb00e6460f3c98b0bfafaba3c0a0ded4bdf6e62cee7174d969e8670d7e757fee",
    "onet": "94f6ea2f4cf985275ee958cdd762d17b6009348a4fb9d8c6be39ba73ffd22ca3",
}
# Layers up to the outputs: C kernel (then PReLU), M kernel and padding of a pool of stride 2, F a dense layer (then
# PReLU). The outputs are 1x1 convolutions for pnet and dense layers for the others.
LAYERS = {
    "pnet": ("C3", "M2 SAME_UPPER", "C3", "C3"),
    "rnet": ("C3", "M3 SAME_UPPER", "C3", "M3 VALID", "C2", "F"),
    "onet": ("C3", "M3 SAME_UPPER", "C3", "M3 VALID", "C3", "M2 SAME_UPPER", "C2", "F"),
}
OUTPUTS = {"pnet": ("boxes", "scores"), "rnet": ("boxes", "scores"), "onet": ("boxes", "points", "scores")}


class Network:
    """One of the three: images float32 [N, 3, H, W] in [-1, 1] -> its outputs, in the order of OUTPUTS.

    pnet takes any H and W from 12 on, and gives maps [N, 4, h, w] and [N, 2, h, w]; rnet takes 24 x 24 and gives [N, 4]
    and [N, 2]; onet takes 48 x 48 and gives [N, 4], [N, 10] and [N, 2]. The last number of scores is that of a face.
    """

    def __init__(self, name: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = FATAL_ONLY
        self._session = onnxruntime.InferenceSession(
            graph(name, weights(name)), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        outputs: list[NDArray[np.float32]] = self._session.run(None, {"x": x})
        return outputs


@cache  # once a process
def network(name: str) -> Network:
    """Return pnet, rnet or onet. Raises WrongUse if the package is missing or is another version."""
    return Network(name)


def need_weights() -> None:
    """Raise WrongUse if the package with the weights is missing or holds other files."""
    for name in SHA256:
        _file(name)


def weights(name: str) -> list[NDArray[np.float32]]:
    """Return the arrays of a network, kernel, bias and PReLU in turn. Raises WrongUse as `need_weights` does."""
    arrays: list[NDArray[np.float32]] = joblib.load(_file(name))
    return arrays


def _file(name: str) -> Path:
    try:
        package = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise WrongUse(
            f"align=auto takes its detector from the package {PACKAGE}; run `pip install {PACKAGE}=={VERSION}`, or "
            "give align=none"
        ) from error
    file = Path(str(package.locate_file(PACKAGE))) / "assets" / "weights" / f"{name}.lz4"
    if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != SHA256[name]:
        raise WrongUse(
            f"{file} is not the file of {PACKAGE} {VERSION}; run `pip install --force-reinstall {PACKAGE}=={VERSION}`"
        )
    return file


def graph(name: str, arrays: Sequence[NDArray[np.float32]]) -> bytes:
    """Return the ONNX file of a network from its arrays, which have the layout of Keras: [h, w, in, out]."""
    left = list(arrays)
    nodes: list[Any] = []
    constants: list[Any] = []

    def add(kind: str, x: str, arrays: Sequence[NDArray[np.float32]] = (), out: str = "", **attributes: Any) -> str:
        out = out or f"t{len(nodes)}"
        names = [f"{out}.{place}" for place in range(len(arrays))]
        constants.extend(
            numpy_helper.from_array(np.ascontiguousarray(array), called)
            for array, called in zip(arrays, names, strict=True)
        )
        nodes.append(helper.make_node(kind, [x, *names], [out], **attributes))
        return out

    def convolve(x: str, out: str = "") -> str:
        kernel, bias = left.pop(0), left.pop(0)
        return add("Conv", x, [kernel.transpose(3, 2, 0, 1), bias], out)

    def dense(x: str, out: str = "") -> str:
        return add("Gemm", x, [left.pop(0), left.pop(0)], out)

    x = "x"
    for layer in LAYERS[name]:
        if layer[0] == "M":
            kernel, padding = int(layer[1]), layer.split()[1]
            x = add("MaxPool", x, kernel_shape=[kernel, kernel], strides=[2, 2], auto_pad=padding)
        elif layer[0] == "C":
            x = convolve(x)
            x = add("PRelu", x, [left.pop(0).reshape(-1, 1, 1)])
        else:
            # The weights were trained on transposed images: columns come before rows.
            x = add("Flatten", add("Transpose", x, perm=[0, 3, 2, 1]))
            x = dense(x)
            x = add("PRelu", x, [left.pop(0)])
    last = convolve if name == "pnet" else dense
    for output in OUTPUTS[name]:
        if output == "scores":
            add("Softmax", last(x), out=output, axis=1)
        else:
            last(x, output)
    assert not left
    rank: list[str | int | None] = ["N", 3, "H", "W"]
    made = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, rank)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None) for output in OUTPUTS[name]],
        constants,
    )
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(made, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString()
