"""Smaller versions of an exported file: fp16, or int8 calibrated on images. onnxruntime's own tools convert.

Both take and give fp32, so that callers need no change.

Letters: N images, D embedding size.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16

from app.onnx.compare import cosines, pixels
from app.onnx.make import INPUT
from app.onnx.session import Session

# The mean cosine to fp32 that a file needs, unless the user gives another.
LEAST_MEAN_COSINE = {"fp16": 0.999, "int8": 0.98}
LARGEST_FP16 = 65504.0
LOOKED_INTO = 4  # images whose numbers between the layers are looked at
INT8_OPSET = 13  # the first with a scale for each channel of a weight
INT8_LAYERS = ["Conv", "Gemm", "MatMul"]
CALIBRATED_AT_ONCE = 8
TIMED_RUNS = 10


def to_fp16(model: bytes) -> bytes:
    """Return the file with weights and arithmetic in fp16; input and output stay fp32."""
    graph = onnx.load_from_string(model)
    with quiet():
        small = convert_float_to_float16(graph, keep_io_types=True)
    return bytes(small.SerializeToString(deterministic=True))


def to_int8(model: bytes, images: NDArray[np.uint8], *, inside: bool) -> bytes:
    """Return the file with convolutions and matrix products in int8. Its opset must be INT8_OPSET or newer.

    Pixels are normalised, resampled and transformed in fp32. The ranges of activations are those that `images`
    [N, 112, 112, 3] give. Weights have a scale for each channel.
    """
    graph = onnx.load_from_string(model)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, quiet():
        out = Path(folder, "int8.onnx")
        quantize_static(
            graph,
            out,
            _Pixels(images, inside),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=INT8_LAYERS,
            nodes_to_exclude=before_the_network(graph),
            per_channel=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        return out.read_bytes()


def largest_number(model: bytes, images: NDArray[np.uint8], *, inside: bool) -> float:
    """The largest absolute number of weights and between the layers, for some images uint8 [N, 112, 112, 3].

    onnxruntime computes fp16 layers in fp32 on most CPUs, so a number beyond fp16 shows only here.
    """
    graph = onnx.load_from_string(model)
    weights = [numpy_helper.to_array(tensor) for tensor in graph.graph.initializer]
    found = [float(np.abs(weight).max(initial=0)) for weight in weights if weight.dtype == np.float32]
    known = {value.name for value in graph.graph.output}
    between = {name for node in graph.graph.node for name in node.output} - known
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(between))
    session = Session(graph.SerializeToString())
    for image in pixels(images[:LOOKED_INTO], inside=inside):
        found += [float(np.abs(out).max(initial=0)) for out in session.outputs(image[None])]
    return max(found)


def before_the_network(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that normalise, resample and transform pixels: all before the first convolution."""
    names = []
    for node in model.graph.node:
        if node.op_type == "Conv":
            break
        names.append(node.name)
    return names


class _Pixels(CalibrationDataReader):
    """Feeds the calibration with images, a few at a time."""

    def __init__(self, images: NDArray[np.uint8], inside: bool) -> None:
        self.batches: Iterator[NDArray[np.float32]] = (
            pixels(images[start : start + CALIBRATED_AT_ONCE], inside=inside)
            for start in range(0, len(images), CALIBRATED_AT_ONCE)
        )

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        batch = next(self.batches, None)
        return None if batch is None else {INPUT: batch}


@contextmanager
def quiet() -> Iterator[None]:
    """Silence advice of the converters, which speaks of their own command-line tools."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@dataclass(frozen=True)
class Loss:
    """The difference between a smaller file and fp32 on `images` images, and both files' time for one image."""

    images: int
    mean_cosine: float
    least_cosine: float
    ms_an_image: dict[str, float]  # by precision, on this CPU

    def good(self, least: float) -> bool:
        return self.mean_cosine >= least  # false for NaN


def loss(fp32: bytes, small: bytes, precision: str, images: NDArray[np.uint8], *, inside: bool) -> Loss:
    """Compare a smaller file with fp32 on images uint8 [N, 112, 112, 3]. Raises CannotRun."""
    x = pixels(images, inside=inside)
    sessions = {"fp32": Session(fp32), precision: Session(small)}
    wanted, found = (_in_batches(session, x) for session in sessions.values())
    cosine = cosines(found, wanted)
    times = {name: round(session.ms_an_image(x[:1], TIMED_RUNS), 3) for name, session in sessions.items()}
    return Loss(len(images), float(cosine.mean()), float(cosine.min()), times)


def _in_batches(session: Session, x: NDArray[np.float32]) -> NDArray[Any]:
    parts: Sequence[NDArray[Any]] = [
        session.run(x[start : start + CALIBRATED_AT_ONCE]) for start in range(0, len(x), CALIBRATED_AT_ONCE)
    ]
    return np.concatenate(parts)
