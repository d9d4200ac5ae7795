"""Continue a run of arcface_torch: convert its checkpoint_gpu_RANK.pt files to the content of one of our checkpoints.

There, one optimizer has the parameters of the backbone in the order of its state_dict, then the class centres of the
rank. A file is written after each epoch; it holds no scale of fp16.

Letters: C classes, D embedding size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from app.runtime.checkpoint import TrainState, read_tensors, refuse_misfit
from app.runtime.published import GAIN, translate
from app.runtime.weights import their_files, their_parts

THEIRS = {"state_dict_backbone", "state_dict_softmax_fc", "state_optimizer", "epoch", "global_step"}
MOMENTS = {"sgd": {"momentum_buffer": "momentum"}, "adamw": {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}}


def converted(
    path: Path, modules: nn.Module, backbone: nn.Module, copies: Sequence[str], optimizer: torch.optim.Optimizer
) -> dict[str, Any] | None:
    """Return the files beside `path` as one of our checkpoints, with a note of what was taken; None for other files.

    `copies`: names of the parts of `modules` that hold the backbone's weights. The optimizer's state is taken if it is
    of the same kind and its sizes fit. Raises WrongUse for files that do not belong together or of another backbone.
    """
    content = read_tensors(path)
    if not isinstance(content, dict) or not content.keys() >= THEIRS:
        return None
    if not all(isinstance(content[key], int) for key in ("epoch", "global_step")):
        return None
    wanted = backbone.state_dict()
    weights = translate(content["state_dict_backbone"], wanted)
    refuse_misfit(path, weights, wanted)
    state = {name: tensor.detach().cpu().clone() for name, tensor in modules.state_dict().items()}
    for prefix in copies:
        state |= {f"{prefix}.{name}": tensor for name, tensor in weights.items()}
    step = content["global_step"]
    kind = "adamw" if "exp_avg" in _state_of(content, 0) else "sgd"  # of the first convolution
    same_kind = kind == ("adamw" if isinstance(optimizer, torch.optim.AdamW) else "sgd")
    names = [name for name in content["state_dict_backbone"] if name in dict(backbone.named_parameters())]
    moments = _moments(content, names, backbone, optimizer) if same_kind else {}
    tables, with_moments = _tables(path, kind if same_kind else None, len(names), step, optimizer)
    state["head.steps"] = torch.tensor(step)
    taken = f"optimizer state of {len(moments)} of {len(names)} parameters" if same_kind else f"no state of {kind}"
    of_centres = f"class centres{'' if with_moments else ', without their optimizer state'}"
    return {
        "state": asdict(TrainState(epoch=content["epoch"], step=step)),
        "modules": state,
        "tables": tables,
        "optimizer": {"state": moments, "param_groups": optimizer.state_dict()["param_groups"]},
        "scaler": {},
        "facts": {},
        "note": f"continues arcface_torch's {path.name}: took backbone, {of_centres}, {taken}; "
        "its settings are unknown",
    }


def _state_of(content: Mapping[str, Any], number: int) -> Mapping[str, Any]:
    """The optimizer's state of a parameter; {} without any."""
    state = content["state_optimizer"].get("state", {})
    found = state.get(number, {})
    return found if isinstance(found, dict) else {}


def _moments(
    content: Mapping[str, Any], names: list[str], backbone: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[int, dict[str, Any]]:
    """The state of each backbone parameter that fits, by its number in our optimizer."""
    ours = {id(p): name for name, p in backbone.named_parameters()}
    theirs = {name: _state_of(content, number) for number, name in enumerate(names)}
    found: dict[int, dict[str, Any]] = {}
    for number, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        name = ours.get(id(p), "")
        state = theirs.get(name, {})
        if name == GAIN:  # of the fork; `translate` changes the order of its colours
            continue
        tensors = [value for value in state.values() if isinstance(value, Tensor)]
        if tensors and len(tensors) == len(state) and all(t.shape in (p.shape, ()) for t in tensors):
            found[number] = dict(state)
    return found


def _tables(
    path: Path, kind: str | None, number: int, step: int, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], bool]:
    """Tables of the class centres of all ranks; moments are zeros, and False is returned, if theirs do not fit."""
    weight = torch.cat(their_parts(path))
    steps = torch.full((len(weight),), step)  # int64 [C]
    mine = "adamw" if isinstance(optimizer, torch.optim.AdamW) else "sgd"
    parts = [_state_of(read_tensors(file), number) for file in their_files(path)]
    moments, fits = {}, False
    for theirs, ours in MOMENTS[mine].items():
        given = [part.get(theirs) for part in parts]
        fits = kind == mine and all(isinstance(t, Tensor) and t.ndim == 2 for t in given)
        joined = torch.cat([t for t in given if t is not None]) if fits else weight[:0]
        moments[ours] = joined if joined.shape == weight.shape else torch.zeros_like(weight)
        fits = fits and joined.shape == weight.shape
    tables = {"weight": weight, "last_step": steps, "labels": torch.arange(len(weight)), **moments}
    return tables | ({"updates": steps.clone() if fits else torch.zeros_like(steps)} if mine == "adamw" else {}), fits
