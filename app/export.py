"""Export a trained network: python -m app.export checkpoint=PATH out=model.onnx [key=value …]

    checkpoint=PATH      a checkpoint of a run; the settings are those of the run's config.yaml
    weights=FILE         or published weights, with backbone=NAME, such as backbone=iresnet50
    out=model.onnx       the file; model.json beside it says what it is
    out=backbone.pt      instead: the plain state_dict that arcface_torch's get_model(…).load_state_dict takes
    opset=11             of ONNX, 11 to 20; 11 is what the MFR challenge's server reads (default for int8: 13)
    precision=fp16|int8  a smaller file, with the measured difference to fp32: about half or a quarter of the size.
                         fp16 has weights of 16 bits; most CPUs compute its layers in fp32, and so does the measurement
    min_cosine=0.98      mean cosine to fp32 that it needs to be written (default: fp16 0.999, int8 0.98)
    calibration=FILE     images.npy from which int8 takes the range of its numbers (default: those the run trained on,
                         else as check_images)
    sets=lfw.bin,…       measure fp32 and the smaller file on these sets, as app.evaluate does; left out: on up to 400
                         images of the run's held-out people, if its data set is here
    normalise=inside     the file takes pixels from 0 to 255; outside: the caller gives (pixel - 127.5) / 127.5
    check_images=FILE    images.npy to compare on (default: the run's own, else the ORL photographs)
    evaluation=FILE      an eval.json that has these weights: their accuracy and thresholds go into model.json
    check=model.onnx     instead: judge any ONNX file by the rules of the challenge

The model's input is RGB faces, fp32 [N, 3, 112, 112]; it resamples them itself if the network needs another size. The
file is written only if onnxruntime and torch give the same embeddings of real images.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from app.config import BackboneConfig, Config, load, own_words
from app.data.arrays import SIDE
from app.errors import Failed, WrongUse
from app.evaluation.image_set import ImageSet
from app.evaluation.sets import held_out, open_set
from app.evaluation.side_by_side import Figures, side_by_side
from app.files import atomic, make_folder, refuse_to_replace, write_json
from app.files import shown as in_short
from app.models import build_backbone
from app.onnx import rules
from app.onnx.chosen import LEAST_CALIBRATION_IMAGES, faces, trained_on
from app.onnx.compare import LEAST_COSINE, MOST_DIFFERENCE, Agreement, compare
from app.onnx.make import BATCH, HALF_RANGE, INPUT, OPSETS, OUTPUT, to_onnx
from app.onnx.network import OnnxNetwork
from app.onnx.session import VERSION
from app.onnx.smaller import INT8_OPSET, LARGEST_FP16, LEAST_MEAN_COSINE, largest_number, loss, to_fp16, to_int8
from app.runtime import checkpoint
from app.runtime.command import answer
from app.runtime.dist import ALONE, leave
from app.runtime.folder import RunFolder
from app.runtime.published import to_published
from app.runtime.stop import Stop
from app.runtime.weights import load_backbone

OWN_WORDS = (
    *("checkpoint", "weights", "out", "opset", "normalise", "check_images", "evaluation", "check"),
    *(SMALLER_WORDS := ("precision", "min_cosine", "calibration", "sets")),
)
HELD_OUT_IMAGES = 400  # each is embedded by both files, so more would make the export of a large network slow


class Differs(Failed):
    """The ONNX model does not reproduce the network's embeddings. The sentence has both measures; exit code 1."""


@dataclass(frozen=True)
class Request:
    """A validated export request; the files it names exist."""

    weights: Path
    backbone: BackboneConfig
    out: Path
    opset: int
    inside: bool  # the model normalises pixels
    images: NDArray[np.uint8]  # [n, 112, 112, 3] to compare on
    images_of: str
    measured: dict[str, Any] | None = None  # name of a set -> these weights' results on it
    smaller: Smaller | None = None


@dataclass(frozen=True)
class Smaller:
    """How to make a file in fp16 or int8, and what it is measured on."""

    precision: str
    min_cosine: float
    calibration: NDArray[np.uint8]  # [n, 112, 112, 3]; empty for fp16
    calibration_of: str
    sets: Sequence[ImageSet]


def main(argv: list[str]) -> int:
    stop = Stop().listen()

    def at_once() -> tuple[str, int]:
        with stop.at_once(ALONE):
            return work(argv)

    return answer(argv, __doc__ or "", at_once)


def work(argv: list[str]) -> tuple[str, int]:
    """The text to print and the exit code: 1 if a file given as check=… breaks a rule. Raises WrongUse and Differs."""
    own, overrides = own_words(argv, OWN_WORDS)
    if "check" in own:
        if len(argv) > 1:
            raise WrongUse("check=… takes no other options; leave the other words out")
        verdicts = rules.judge(Path(own["check"]))
        return lines(verdicts), int(not kept(verdicts))
    if Path(own.get("out") or "").suffix in PLAIN:
        return export_weights(own, overrides), 0
    return export(decide(own, overrides)), 0


PLAIN, PLAIN_WORDS = (".pt", ".pth"), ("checkpoint", "weights", "out")  # suffixes, and the words that apply


def export_weights(own: dict[str, str], overrides: list[str]) -> str:
    """Write the backbone's tensors under their published names; returns the text to print. Raises WrongUse."""
    other = next((word for word in own if word not in PLAIN_WORDS), None)
    if other:
        raise WrongUse(f"{other}=… applies only to an ONNX file; leave it out, or give out=model.onnx")
    path, config = source(own, overrides)
    out = Path(own["out"]).absolute()
    refuse_to_replace(out, [path], beside=False)
    if out.exists() and RunFolder.with_weights(out.resolve()):
        raise WrongUse(f"out={out} is a checkpoint of a run; give another name, such as out=backbone.pt")
    backbone = build_backbone(config.backbone)
    load_backbone(path, backbone)
    state = to_published(backbone.state_dict())
    make_folder(out.parent, "out", of=out)
    with atomic(out, sum(tensor.nbytes for tensor in state.values()), "the weights") as file:
        torch.save(state, file)
    return f"{in_short(out)}: {len(state)} tensors of {path.name}, for load_state_dict of the published code"


def decide(own: dict[str, str], overrides: list[str]) -> Request:
    """Turn the command line into a Request. Raises WrongUse."""
    path, config = source(own, overrides)
    out = Path(own.get("out") or "").absolute()
    if out.suffix != ".onnx":
        name = own.get("out", "…")
        raise WrongUse(f"out={name} is not a valid file name; give one such as out=model.onnx or out=backbone.pt")
    refuse_to_replace(out, [path])
    precision = own.get("precision", "fp32")
    opset = own.get("opset", str(INT8_OPSET if precision == "int8" else OPSETS[0]))
    if opset not in map(str, OPSETS):
        raise WrongUse(f"opset={opset} cannot be written; give one from {OPSETS[0]} to {OPSETS[-1]}, such as opset=11")
    normalise = own.get("normalise", "inside")
    if normalise not in ("inside", "outside"):
        raise WrongUse(f"normalise={normalise} is not known; give normalise=inside or normalise=outside")
    images, images_of = faces(own.get("check_images"), config.data.binary_cache_path)
    measured = measured_of(Path(own["evaluation"]), path) if "evaluation" in own else None
    smaller = decide_smaller(own, precision, int(opset), config)
    return Request(path, config.backbone, out, int(opset), normalise == "inside", images, images_of, measured, smaller)


def decide_smaller(own: dict[str, str], precision: str, opset: int, config: Config) -> Smaller | None:
    """The options of a smaller file; None for fp32. Raises WrongUse."""
    if precision not in ("fp32", *LEAST_MEAN_COSINE):
        raise WrongUse(f"precision={precision} is not known; give fp16 or int8, or leave it out for fp32")
    idle = [word for word in SMALLER_WORDS[1:] if word in own]
    if precision == "fp32":
        if idle:
            raise WrongUse(f"{idle[0]}= has no effect on a file in fp32; add precision=int8 or fp16, or leave it out")
        return None
    if precision == "int8" and opset < INT8_OPSET:
        raise WrongUse(f"opset={opset} has no int8 with a scale for each channel; give opset={INT8_OPSET} or higher")
    told = own.get("min_cosine", str(LEAST_MEAN_COSINE[precision]))
    try:
        min_cosine = float(told)
    except ValueError:
        min_cosine = math.nan
    if not 0 <= min_cosine <= 1:
        raise WrongUse(f"min_cosine={told} is not a cosine; give a number from 0 to 1, such as min_cosine=0.98")
    sets = sets_of(own.get("sets"), config)
    if precision == "fp16":
        if "calibration" in own:
            raise WrongUse("calibration= applies only to precision=int8; leave it out")
        return Smaller(precision, min_cosine, np.empty((0, SIDE, SIDE, 3), np.uint8), "", sets)
    given = own.get("calibration", own.get("check_images"))
    images, images_of = trained_on(config) if given is None else (None, "")
    if images is None:
        images, images_of = faces(given, config.data.binary_cache_path, between=True)
    if len(images) < LEAST_CALIBRATION_IMAGES:
        raise WrongUse(
            f"{images_of} has {len(images)} images for calibration besides those that are compared, and int8 needs "
            f"{LEAST_CALIBRATION_IMAGES}; give calibration=FILE with more, such as an images.npy of 200 images"
        )
    return Smaller(precision, min_cosine, images, images_of, sets)


def sets_of(given: str | None, config: Config) -> list[ImageSet]:
    """The named sets; without any, the held-out people of the run's own data set, if it is here. Raises WrongUse."""
    if given is not None:
        return [open_set(Path(name)) for name in given.split(",") if name]
    try:
        return [held_out(config, most=HELD_OUT_IMAGES)]
    except WrongUse:
        return []


def source(own: dict[str, str], overrides: list[str]) -> tuple[Path, Config]:
    """The file with the weights, and the configuration of its backbone. Raises WrongUse."""
    if ("checkpoint" in own) == ("weights" in own):
        raise WrongUse(
            "export needs checkpoint=… or weights=…; "
            "give checkpoint=runs/RUN/checkpoints/epoch_014.pt, or weights=FILE backbone=NAME"
        )
    path = Path(own.get("checkpoint") or own.get("weights") or "").absolute()
    if not path.is_file():
        raise WrongUse(f"there is no file {path}; give a checkpoint such as runs/RUN/checkpoints/epoch_014.pt")
    if "weights" in own:
        if not any(word.startswith("backbone") for word in overrides):
            raise WrongUse(f"{path.name} does not record its backbone; add backbone=NAME, such as backbone=iresnet50")
        return path, load(overrides)
    folder = RunFolder(path.parent.parent)
    if not folder.config.is_file():
        raise WrongUse(
            f"{folder.config} is missing, and {path.name} needs it; "
            "give a checkpoint in a run's folder, or weights=FILE backbone=NAME"
        )
    return path, load(overrides, base=folder.config)


def measured_of(file: Path, weights: Path) -> dict[str, Any]:
    """The results of these weights in an eval.json, by the name of a set. Raises WrongUse."""
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))["weights"]
        of_file = {row["sha256"]: dict(row["sets"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WrongUse(f"evaluation={file} is not an eval.json; give one that app.evaluate wrote") from error
    found = of_file.get(checkpoint.sha256(weights))
    if found is None:
        raise WrongUse(f"{file} has no results for {weights.name}; evaluate it first: python -m app.evaluate weights=…")
    return found


def export(request: Request) -> str:
    """Convert, compare with torch, write model and JSON; returns the text to print. Raises Differs before writing."""
    backbone = build_backbone(request.backbone)
    load_backbone(request.weights, backbone)
    size, inside = request.backbone.image_size, request.inside
    model = to_onnx(backbone.eval(), image_size=size, opset=request.opset, inside=inside)
    agreement = compare(model, backbone, request.images, image_size=size, inside=inside)
    measured = f"max difference {agreement.max_abs_difference:.1e}, least cosine {agreement.least_cosine:.7f}"
    if not agreement.good:
        raise Differs(
            f"{request.out} was not written, as it differs from the network on {agreement.images} images: {measured} "
            f"(at most {MOST_DIFFERENCE * max(1.0, agreement.largest):.1e} and at least {LEAST_COSINE:g} are required)"
        )
    if request.smaller is not None:
        return export_smaller(request, request.smaller, model, agreement)
    write(request, model)
    verdicts = rules.judge(request.out)
    of_rules = {"rules": {verdict.rule: verdict.passed for verdict in verdicts if verdict.passed is not None}}
    write_json(request.out.with_suffix(".json"), {**description(request, model, agreement), **of_rules})
    compared = f"{agreement.images} images of {in_short(Path(request.images_of))}"
    return f"{in_short(request.out)}: {measured} on {compared}\n{lines(verdicts)}"


def export_smaller(request: Request, how: Smaller, fp32: bytes, agreement: Agreement) -> str:
    """Convert the file, measure what that costs, and write it; returns the text to print. Raises Differs."""
    is_fp16 = how.precision == "fp16"
    largest = largest_number(fp32, request.images, inside=request.inside) if is_fp16 else 0.0
    if not largest <= LARGEST_FP16:
        raise Differs(
            f"{request.out} was not written, as the network has numbers up to {largest:,.0f} between its layers and "
            f"fp16 ends at {LARGEST_FP16:,.0f}; give precision=int8, or leave it out for fp32"
        )
    model = to_fp16(fp32) if is_fp16 else to_int8(fp32, how.calibration, inside=request.inside)
    found = loss(fp32, model, how.precision, request.images, inside=request.inside)
    measured = f"cosine to fp32 {found.mean_cosine:.5f} on average, {found.least_cosine:.5f} at least"
    if not found.good(how.min_cosine):
        more = "; more images for calibration= may help" if how.precision == "int8" else ""
        raise Differs(
            f"{request.out} was not written, as {how.precision} changes the embeddings of {found.images} images too "
            f"much: {measured}, and min_cosine={how.min_cosine:g} on average is required{more}"
        )
    about = {**description(request, model, agreement), "precision": how.precision, "loss": asdict(found)}
    if how.precision == "int8":
        about["calibration"] = {"images": len(how.calibration), "images_of": how.calibration_of}
    else:
        about["largest_number"] = largest
    about["sets"] = figures = accuracies(request, how, {"fp32": fp32, how.precision: model}, about)
    write(request, model)
    write_json(request.out.with_suffix(".json"), about)
    times = ", ".join(f"{name} {time_ms:.1f}" for name, time_ms in found.ms_an_image.items())
    told = [
        f"{in_short(request.out)}: {how.precision}, {measured}, on {found.images} images of "
        f"{in_short(Path(request.images_of))}",
        f"size: {len(model) / 2**20:.1f} MiB; fp32 has {len(fp32) / 2**20:.1f}",
        f"time of one image on this CPU in ms: {times}",
        *(
            f"{name}: {numbers['measure']} fp32 {shown(numbers['fp32'])}, "
            f"{how.precision} {shown(numbers[how.precision])}"
            for name, numbers in figures.items()
        ),
        "not for MFR-ongoing, which takes fp32 only",
    ]
    return "\n".join(told)


def accuracies(request: Request, how: Smaller, files: dict[str, bytes], about: dict[str, Any]) -> Figures:
    """Measure files, by precision, on the sets of the request."""
    if not how.sets:
        return {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        networks = {}
        for precision, model in files.items():
            file = Path(folder, f"{precision}.onnx")
            file.write_bytes(model)
            write_json(file.with_suffix(".json"), {"file": file.name, "normalisation": about["normalisation"]})
            networks[precision] = OnnxNetwork(file)
        return side_by_side(networks, how.sets, replace(request.backbone, image_size=SIDE))


def shown(accuracy: float | None) -> str:
    return "not measured" if accuracy is None else f"{accuracy:.2%}"


def write(request: Request, model: bytes) -> None:
    make_folder(request.out.parent, "out", of=request.out)
    with atomic(request.out, len(model), "the ONNX file") as file:
        file.write(model)


def description(request: Request, model: bytes, agreement: Agreement) -> dict[str, Any]:
    """The content of the JSON beside the file."""
    return {
        "file": request.out.name,
        "sha256": hashlib.sha256(model).hexdigest(),
        "bytes": len(model),
        "opset": request.opset,
        "input": {"name": INPUT, "shape": [BATCH, 3, SIDE, SIDE], "colours": "RGB"},
        "output": {"name": OUTPUT, "shape": [BATCH, request.backbone.embedding_dim]},
        # The caller applies (pixel - mean) / std to pixels from 0 to 255.
        "normalisation": {"mean": 0.0, "std": 1.0} if request.inside else {"mean": HALF_RANGE, "std": HALF_RANGE},
        "backbone": asdict(request.backbone),
        "checkpoint": {"file": request.weights.name, "sha256": checkpoint.sha256(request.weights)},
        "agreement": {**asdict(agreement), "images_of": request.images_of},
        **({"evaluation": request.measured} if request.measured is not None else {}),
        "made_with": {"torch": str(torch.__version__), "onnxruntime": VERSION},
        "created": time.time(),
    }


def lines(verdicts: Sequence[rules.Verdict]) -> str:
    told = "all rules pass" if kept(verdicts) else "a rule fails"
    return "\n".join([*map(str, verdicts), f"rules of MFR-ongoing: {told}"])


def kept(verdicts: Sequence[rules.Verdict]) -> bool:
    return all(verdict.passed is not False for verdict in verdicts)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
