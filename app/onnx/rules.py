"""Check an ONNX file against the rules of the MFR-ongoing challenge before it is submitted.

The server offers no check, so its published checks and rules are repeated here: images [*, 3, 112, 112], one output,
at most 1,024 MB, no 16-bit weights, at least 8 nodes, onnxruntime 1.8. Some checks are stricter, so that a file that
passes runs anywhere: every float is fp32, the batch is symbolic (the server would make it so), and a batch of 32 images
gives finite numbers. Time is reported, not judged: the tracks' limits (10, 15, 20 and 30 ms) apply to their GPU.

Letters: N images, D embedding size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from app.data.arrays import SIDE
from app.errors import WrongUse
from app.onnx.session import CannotRun, Session, first_line

MOST_MB = 1024
MOST_DIM, MOST_DIM_UNCONSTRAINED = 512, 1024  # the second only in the unconstrained track
LEAST_NODES = 8
FIRST_NODES = 8  # the server looks for normalisation among these
NEWEST_OPSET, NEWEST_IR = 14, 7  # newest versions that onnxruntime 1.8 reads
BATCH = 32
TIMED_RUNS = 10
WEIGHTS = {TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64}  # integers hold shapes and indices
PARSED_BYTES = 2**31 - 1  # of a protobuf message


@dataclass(frozen=True)
class Verdict:
    """A rule, whether the file passes it (None: information only), and what was found."""

    rule: str
    passed: bool | None
    found: str

    def __str__(self) -> str:
        word = {True: "pass", False: "FAIL", None: "    "}[self.passed]
        return f"{word}  {self.rule}: {self.found}"


def judge(path: Path) -> list[Verdict]:
    """Return the verdicts of all rules; only the size if the file is too large to parse. Raises WrongUse."""
    if path.is_file() and path.stat().st_size > PARSED_BYTES:
        return [size(path)]
    model = read(path)
    pixels = normalisation(model)
    return [
        input_(model),
        output(model),
        size(path),
        weights(model),
        nodes(model),
        versions(model),
        *running(path, *pixels),
        Verdict("normalisation", None, f"it will be given {taken(*pixels)}{overlooked(model)}"),
    ]


def read(path: Path) -> onnx.ModelProto:
    """Read the file's graph. Raises WrongUse if the file is missing or ONNX's checker rejects it."""
    if not path.is_file():
        raise WrongUse(f"there is no file {path}; give check=FILE.onnx")
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise WrongUse(
            f"{path} is not a valid ONNX file ({first_line(error)}); give one that `python -m app.export` has written"
        ) from error
    return onnx.load(path, load_external_data=False)


def taken(mean: float, std: float) -> str:
    """What the caller gives, in words."""
    return "pixels from 0 to 255" if (mean, std) == (0, 1) else f"(pixel - {mean:g}) / {std:g}"


def input_(model: onnx.ModelProto) -> Verdict:
    # Old files list their weights among the inputs.
    names = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in names]
    told = ", ".join(described(value) for value in inputs)
    if len(inputs) != 1:
        return Verdict("input", False, f"{len(inputs)} ({told}); one is required")
    kind = inputs[0].type.tensor_type
    first, *others = kind.shape.dim or [onnx.TensorShapeProto.Dimension()]
    symbolic = not first.HasField("dim_value")
    fits = [d.dim_value for d in others] == [3, SIDE, SIDE] and kind.elem_type == TensorProto.FLOAT
    return Verdict("input", symbolic and fits, f"{told}; fp32 [N, 3, {SIDE}, {SIDE}] with any N is required")


def output(model: onnx.ModelProto) -> Verdict:
    outputs = list(model.graph.output)
    told = ", ".join(described(value) for value in outputs)
    if len(outputs) != 1:
        return Verdict("output", False, f"{len(outputs)} ({told}); one is required")
    shape = [d.dim_value for d in outputs[0].type.tensor_type.shape.dim]
    fits = len(shape) == 2 and 0 < shape[1] <= MOST_DIM_UNCONSTRAINED
    track = ", for the unconstrained track only" if fits and shape[1] > MOST_DIM else ""
    limits = f"[N, D] with D at most {MOST_DIM} ({MOST_DIM_UNCONSTRAINED} unconstrained) is required"
    return Verdict("output", fits, f"{told}{track}; {limits}")


def described(value: onnx.ValueInfoProto) -> str:
    """Format name, type and shape, such as `input float [N, 3, 112, 112]`."""
    kind = value.type.tensor_type
    shape = ", ".join(str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in kind.shape.dim)
    return f"{value.name} {TensorProto.DataType.Name(kind.elem_type).lower()} [{shape}]"


def size(path: Path) -> Verdict:
    size_mb = path.stat().st_size / 2**20
    return Verdict("size", size_mb <= MOST_MB, f"{size_mb:,.1f} MB of at most {MOST_MB:,}")


def weights(model: onnx.ModelProto) -> Verdict:
    tensors = list(all_weights(model.graph))
    for tensor in tensors:
        if tensor.data_location == TensorProto.EXTERNAL:
            return Verdict("weights", False, f"{tensor.name} lies outside the file; all must be inside")
        if tensor.data_type not in WEIGHTS:
            kind = TensorProto.DataType.Name(tensor.data_type).lower()
            return Verdict("weights", False, f"{tensor.name} is {kind}; floats must be fp32")
    return Verdict("weights", True, f"{len(tensors)} tensors, floats in fp32")


def all_weights(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """Yield the initializers, and the tensors in attributes of nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t


def nodes(model: onnx.ModelProto) -> Verdict:
    count = len(model.graph.node)
    return Verdict("nodes", count >= LEAST_NODES, f"{count} of at least {LEAST_NODES}")


def versions(model: onnx.ModelProto) -> Verdict:
    """Check that onnxruntime 1.8 reads the opset and file format, and that all operators are ONNX's own."""
    opsets = {imported.domain or "ai.onnx": imported.version for imported in model.opset_import}
    used = {node.domain or "ai.onnx" for node in model.graph.node}
    opset = opsets.get("ai.onnx", 0)
    passed = opset <= NEWEST_OPSET and model.ir_version <= NEWEST_IR and used == {"ai.onnx"}
    foreign = f", operators of {', '.join(sorted(used - {'ai.onnx'}))}" if used != {"ai.onnx"} else ""
    return Verdict(
        "opset",
        passed,
        f"{opset}, file format {model.ir_version}{foreign}; "
        f"onnxruntime 1.8 reads ONNX's own up to {NEWEST_OPSET} and {NEWEST_IR}",
    )


def running(path: Path, pixel_mean: float, pixel_std: float) -> list[Verdict]:
    """Check that a batch of 32 images gives finite embeddings; time one image on this machine's CPU."""
    rng = np.random.default_rng(0)
    x: NDArray[np.float32] = rng.integers(0, 256, (BATCH, 3, SIDE, SIDE)).astype(np.float32)
    x = ((x - pixel_mean) / pixel_std).astype(np.float32)
    try:
        session = Session(path)
        z = session.run(x)
        finite = bool(np.isfinite(z).all()) and len(z) == BATCH
        verdict = Verdict("runs", finite, f"{BATCH} images give {'finite' if finite else 'broken'} {list(z.shape)}")
        time_ms = session.ms_an_image(x[:1], TIMED_RUNS)
    except CannotRun as error:
        return [Verdict("runs", False, f"onnxruntime says: {error}")]
    return [
        verdict,
        Verdict("time", None, f"{time_ms:.1f} ms an image on this CPU; the tracks allow 10 to 30 on a GPU"),
    ]


def normalisation(model: onnx.ModelProto) -> tuple[float, float]:
    """The mean and std by which the server normalises pixels; (0, 1) if the file normalises them itself.

    The server decides by the names of the first nodes, so this does too: with other names it would normalise twice.
    """
    first = [node.name for node in model.graph.node[:FIRST_NODES]]
    subtracts = any(name.startswith(("Sub", "_minus")) for name in first)
    multiplies = any(name.startswith(("Mul", "_mul")) for name in first)
    return (0.0, 1.0) if subtracts and multiplies else (127.5, 127.5)


def normalisation_of_file(path: Path) -> tuple[float, float]:
    """Like `normalisation`, for a file."""
    return normalisation(onnx.load(str(path), load_external_data=False))


def overlooked(model: onnx.ModelProto) -> str:
    """Warn if a file begins with normalising nodes whose names the server does not recognise; else return no text."""
    operators = [node.op_type for node in model.graph.node if node.op_type not in ("Constant", "Identity")]
    begins = operators[:1] == ["Sub"] and operators[1:2] in (["Mul"], ["Div"])
    return ", although it begins with Sub and Mul under other names" if begins and normalisation(model)[0] else ""
