"""Weights: the backbone and the class centres of a file, ours or published, for evaluation, export and warm starts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from app.errors import WrongUse
from app.runtime.checkpoint import read_tensors, refuse_misfit
from app.runtime.dist import ALONE, World, copied_from_main, together
from app.runtime.finite import NotFinite, first_fault, is_finite
from app.runtime.published import GAIN, prefixes, translate

# Keys under which other trainers store a network's tensors.
WRAPPERS = ("state_dict_backbone", "state_dict", "model_state_dict", "model", "backbone", "net", "network")
EMBEDDERS = ("momentum.encoder.backbone.", "embedder.")  # prefix of the evaluated backbone in each recipe's checkpoint
RELATIVES = {"input_layer", "body", "output_layer"}
THEIR_CENTRES = "state_dict_softmax_fc"  # in arcface_torch's checkpoint_gpu_RANK.pt
THEIR_FILE = re.compile(r"checkpoint_gpu_(\d{1,4})\.pt")


def load_backbone(path: Path, *backbones: nn.Module, new_fourier: bool = False, here: World = ALONE) -> None:
    """Load a backbone into each of `backbones`, from one of our checkpoints (the evaluated one) or published weights.

    With `new_fourier`, a Fourier layer that is missing in the file keeps its initial values, to be trained. With `here`
    only rank 0 needs the file. Raises WrongUse for a file without a backbone or with a different one, and NotFinite for
    values that are not finite.
    """
    content = None
    with together(here):
        if here.is_main:
            content = read_backbone(path)
    content = copied_from_main(content, here)
    for backbone in backbones:
        wanted = backbone.state_dict()
        # Old files lack the update counters of BN, which have no effect.
        counters = {name: t for name, t in wanted.items() if name.endswith("num_batches_tracked")}
        refuse_relatives(path, content)
        refuse_several(path, content, wanted)
        fitting = {**counters, **translate(content, wanted, new_fourier=new_fourier)}
        refuse_fourier(path, fitting, wanted)
        refuse_misfit(path, fitting, wanted)
        refuse_nan_weights(path, fitting)
        backbone.load_state_dict(fitting)


def refuse_nan_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Raise NotFinite, with the name of the first tensor in `weights` that is not finite."""
    fault = first_fault(dict(weights))
    if fault is not None:
        raise NotFinite(f"{path} holds values that are not finite in {fault}; give an older checkpoint or another file")


def read_backbone(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a backbone, under their names in the file. Raises WrongUse for a file without one."""
    if not path.is_file():
        raise WrongUse(f"there is no file {path}; give a checkpoint or a file of published weights that exists")
    content = read_tensors(path)
    if isinstance(content, dict) and isinstance(content.get("modules"), dict):
        modules = content["modules"]
        prefix = next((p for p in EMBEDDERS if any(name.startswith(p) for name in modules)), "none")
        content = {name.removeprefix(prefix): t for name, t in modules.items() if name.startswith(prefix)}
    elif isinstance(content, dict):  # other trainers store a network beside other things
        content = next((content[key] for key in WRAPPERS if isinstance(content.get(key), dict)), content)
    tensors = {name: t for name, t in content.items() if isinstance(t, Tensor)} if isinstance(content, dict) else {}
    if not tensors or not all(isinstance(name, str) for name in tensors):
        raise WrongUse(f"{path} holds no backbone; give a checkpoint or a file of published weights")
    return tensors


def refuse_relatives(path: Path, saved: Mapping[str, Tensor]) -> None:
    """Raise WrongUse for the IR networks of AdaFace and CVLface, which are near to IResNet but are not one."""
    if {part for name in saved for part in name.split(".")} >= RELATIVES:
        raise WrongUse(
            f"{path} holds an IR network as AdaFace and CVLface name it (input_layer, body, output_layer), which no "
            "backbone here is; convert it to ONNX with its own code, for RGB pixels from -1 to 1, and give that file "
            "to python -m app.evaluate"
        )


def refuse_several(path: Path, saved: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raise WrongUse if a file holds several different networks that fit `wanted`."""
    found = prefixes(saved, wanted)
    copies = [[saved.get(prefix + name) for name in wanted] for prefix in found]
    if any(not _equal(one, copies[0]) for one in copies):
        names = " and ".join(prefix or "no prefix" for prefix in found)
        raise WrongUse(f"{path} holds several networks that fit, under {names}; save the tensors of one alone")


def _equal(some: list[Tensor | None], others: list[Tensor | None]) -> bool:
    return all(
        a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in zip(some, others, strict=True)
    )


def has_fourier(saved: Mapping[str, Tensor]) -> bool:
    """Whether a file, under any prefix, has the gain of a Fourier layer."""
    return any(name == GAIN or name.endswith(f".{GAIN}") for name in saved)


def refuse_fourier(path: Path, saved: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raise WrongUse if only one side has a Fourier layer. Files of published weights do not record its mask."""
    if GAIN in saved and GAIN not in wanted:
        raise WrongUse(
            f"{path} has a Fourier layer but does not record its mask; add the mask it was trained with, "
            "backbone.fourier=vit or backbone.fourier=iresnet"
        )
    if GAIN in wanted and GAIN not in saved:
        raise WrongUse(f"{path} has no Fourier layer; give backbone.fourier=none")


def load_centres(path: Path, here: World) -> tuple[Tensor, Tensor]:
    """Class centres [C, D] of a supervised checkpoint, of ours or of arcface_torch, and the label of each class [C].

    Only rank 0 needs the files. Raises WrongUse for a file without centres or with values that are not finite.
    """
    weight = labels = None
    with together(here):
        if here.is_main:
            weight, labels = read_centres(path)
            if not is_finite(weight):
                raise WrongUse(
                    f"{path} holds values that are not finite in its class centres; give another file, or "
                    "recipe.head.warm_start=false to use its backbone alone"
                )
    weight, labels = copied_from_main([weight, labels], here)
    return weight, labels


def read_centres(path: Path) -> tuple[Tensor, Tensor]:
    """Read class centres [C, D] and labels [C]. Raises WrongUse for a file without centres.

    arcface_torch writes one file per GPU, checkpoint_gpu_0.pt and so on, each with the next rows of the centres; the
    label of a class there is its row.
    """
    content = read_tensors(path)
    if isinstance(content, dict) and isinstance(content.get(THEIR_CENTRES), dict):
        weight = torch.cat(their_parts(path))
        return weight, torch.arange(len(weight))
    tables = content.get("tables", {}) if isinstance(content, dict) else {}
    if not {"weight", "labels"} <= tables.keys():
        raise WrongUse(f"{path} holds no class centres; give recipe.head.warm_start=false to use its backbone alone")
    return tables["weight"], tables["labels"]


def their_files(path: Path) -> list[Path]:
    """The files of all GPUs beside `path`, in rank order. Raises WrongUse if one is missing."""
    if not THEIR_FILE.fullmatch(path.name):
        return [path]
    ranks = [int(match[1]) for file in path.parent.iterdir() if (match := THEIR_FILE.fullmatch(file.name))]
    files = [path.with_name(f"checkpoint_gpu_{rank}.pt") for rank in range(max(ranks) + 1)]
    missing = next((file.name for file in files if not file.is_file()), None)
    if missing:
        raise WrongUse(f"{missing} is missing beside {path}; copy the files of all GPUs")
    return files


def their_parts(path: Path) -> list[Tensor]:
    """Centres of each GPU, in rank order, from the files of arcface_torch beside `path`.

    Raises WrongUse if a file is missing, is of another step, or has another share of the classes than its rank.
    """
    parts, step = [], None
    for file in their_files(path):
        content = read_tensors(file)
        part = content.get(THEIR_CENTRES, {}).get("weight") if isinstance(content, dict) else None
        if not isinstance(part, Tensor) or part.ndim != 2:
            raise WrongUse(f"{file} holds no class centres; copy the files of all GPUs from one run")
        if step not in (None, content.get("global_step")):
            raise WrongUse(f"{file} is of another step than checkpoint_gpu_0.pt; copy the files of one run and step")
        step = content.get("global_step")
        parts.append(part)
    each, over = divmod(sum(map(len, parts)), len(parts))
    if [len(part) for part in parts] != [each + (rank < over) for rank in range(len(parts))]:
        raise WrongUse(f"the files beside {path} are not those of {len(parts)} GPUs; copy the files of one run alone")
    if len({part.shape[1] for part in parts}) > 1:
        raise WrongUse(f"the files beside {path} have embeddings of several sizes; copy the files of one run alone")
    return parts
