"""Checkpoints: everything needed to resume a run exactly, written completely or not at all.

NAME.pt holds only tensors and plain values (torch loads it with weights_only). NAME.json beside it holds its sha256 and
a description. The JSON is written last: a .pt without one was cut short and is never used.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from app.errors import WrongUse
from app.files import atomic, claim, read_json, remove, write_json, write_text
from app.runtime import safetensors
from app.runtime.dist import World, copied_from_main, from_main, together
from app.runtime.finite import NotFinite, first_fault, listed
from app.runtime.folder import RunFolder
from app.runtime.foreign import is_safetensors, what_it_is
from app.runtime.optimizer import take_state
from app.runtime.resume import Facts, Verdict, judge, recorded

OPTIONAL = ("bank.features",)  # tensors that a changed setting, here mining.features, adds empty or drops
PARTS = ("state", "modules", "tables", "optimizer", "scaler")  # of a checkpoint


@dataclass
class TrainState:
    """Progress of the loop. Data order and random numbers are pure functions of these numbers and the seed."""

    epoch: int = 0  # the epoch in progress
    seen: int = 0  # images done in the epoch's order; not updates, as the number of processes may change
    step: int = 0  # updates that were taken
    skipped: int = 0  # images of skipped updates, over all epochs; the schedule does not count them
    skipped_last: int = 0  # images of the last update if it was skipped; added to `skipped` one update later


def save(
    folder: RunFolder,
    state: TrainState,
    modules: nn.Module,
    tables: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    *,
    keep: int,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Write a checkpoint and return its JSON: `facts` plus file, sha256, size, epoch, step and time.

    `tables` are complete: the shards of all ranks are stored as one tensor each.

    Between two epochs the checkpoint is named after the epoch that just ended, else after the one in progress. Raises
    WrongUse if there is no room, and NotFinite for a value that is not finite; earlier checkpoints stay intact.
    """
    content = {
        "state": asdict(state),
        "modules": modules.state_dict(),
        "tables": dict(tables),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "facts": facts.get("facts", {}),
    }
    fault = not_finite(content, modules)
    if fault is not None:
        raise NotFinite(f"{fault} holds values that are not finite, so no checkpoint was written")
    epoch_complete = state.seen == 0 and state.epoch > 0
    epoch = state.epoch - 1 if epoch_complete else state.epoch
    path = folder.checkpoints / file_name(epoch, state.step, epoch_complete=epoch_complete)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path, estimated_bytes(modules, optimizer, tables), "a checkpoint") as file:
        torch.save(content, file)
    description = {
        "file": path.name,
        "sha256": sha256(path),
        "bytes": path.stat().st_size,
        "epoch": epoch,
        "step": state.step,
        "epoch_complete": epoch_complete,
        **facts,
        "created": time.time(),
    }
    write_json(path.with_suffix(".json"), description)
    write_text(folder.latest, path.name)
    prune(folder, keep, spare=path)
    return description


def file_name(epoch: int, step: int, *, epoch_complete: bool) -> str:
    """`epoch_014.pt` at the end of an epoch; in the middle, after a stop, the name also has the step."""
    return f"epoch_{epoch:03d}.pt" if epoch_complete else f"epoch_{epoch:03d}_step_{step:08d}.pt"


def is_due(every_epochs: int, epoch: int, epochs: int) -> bool:
    """Whether a checkpoint is written between two epochs: after `epoch` of `epochs`, and always after the last."""
    return epoch % every_epochs == 0 or epoch == epochs


def refuse_without_room(
    folder: RunFolder, modules: nn.Module, optimizer: torch.optim.Optimizer, table_bytes: int
) -> None:
    """Raise WrongUse if two checkpoints do not fit on the disk: now, not after the first epoch.

    `table_bytes`: size of the tables that each contains, the class centres of all ranks.
    """
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    room = folder.checkpoints / ".room"
    try:
        with room.open("wb") as file:
            claim(file, 2 * (estimated_bytes(modules, optimizer) + table_bytes), "two checkpoints")
    finally:
        room.unlink()  # once it is closed: Windows deletes no open file


@dataclass
class Resumable:
    """A checkpoint that passed `examine` and may be resumed."""

    content: dict[str, Any] | None  # on rank 0 only
    verdict: Verdict


def examine(
    path: Path,
    modules: nn.Module,
    facts: Facts,
    here: World,
    *,
    own: bool,
    foreign: Callable[[Path], dict[str, Any] | None] = lambda _: None,
) -> Resumable:
    """Read and check a checkpoint on rank 0, before anything changes. Raises WrongUse on all ranks.

    Other machines do not need the file; a file of that name there is ignored. `own`: see `resume.judge`. `foreign`
    returns another trainer's checkpoint in our form, with a `note`, or None for a file of ours.
    """
    content = verdict = None
    with together(here):
        if here.is_main:
            theirs = foreign(path) if path.is_file() else None
            content = theirs or read(path)
            # Others record no settings: those of this run count as unchanged.
            saved = facts if theirs else recorded(content, read_json(path.with_suffix(".json")))
            state = content["state"]
            verdict = judge(path.name, saved, facts, epoch=state["epoch"], seen=state["seen"], own=own)
            if "note" in content:
                verdict = replace(verdict, notes=(content.pop("note"), *verdict.notes))
            wanted, given = modules.state_dict(), content["modules"]
            kept = {name: tensor for name, tensor in given.items() if name in wanted or name not in OPTIONAL}
            anew = listed(modules, "of_data") if verdict.other_data else set(OPTIONAL) - given.keys()
            content["modules"] = kept | {name: wanted[name].cpu() for name in anew if name in wanted}
            refuse_misfit(path, content["modules"], modules.state_dict())
            refuse_not_finite(path, content, modules)
    agreed = from_main(verdict, here)
    assert agreed is not None, "rank 0 has one"
    return Resumable(content, agreed)


def load(
    found: Resumable,
    modules: nn.Module,
    take_tables: Callable[[dict[str, Tensor]], None],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    here: World,
) -> TrainState:
    """Load an examined checkpoint from rank 0 into these objects on all ranks.

    The optimizer keeps the options of this run. Raises WrongUse, on all ranks, for tables that do not fit.
    """
    tables = found.content.pop("tables") if found.content is not None else {}
    content = copied_from_main(found.content, here)
    take_tables(tables)  # may raise WrongUse
    modules.load_state_dict(content["modules"])
    take_state(optimizer, content["optimizer"])
    if scaler.is_enabled() and content["scaler"]:  # empty if the earlier run was not fp16: the scale starts afresh
        scaler.load_state_dict(content["scaler"])
    return TrainState(**content["state"])


def not_finite(content: Mapping[str, Any], modules: nn.Module) -> str | None:
    """Name of the first value in a checkpoint that is not finite though it must be, or None."""
    spared = {f"modules.{name}" for name in listed(modules, "may_hold_nan")}
    return first_fault({key: content[key] for key in PARTS if key in content}, spared)


def refuse_not_finite(path: Path, content: Mapping[str, Any], modules: nn.Module) -> None:
    """Raise WrongUse for a value that is not finite; names it and an older finite checkpoint of the folder."""
    fault = not_finite(content, modules)
    if fault is None:
        return
    own = _age(path.with_suffix(".json"))
    before = (file for file, age in _intact(path.parent) if age < own)
    older = next((file for file in before if not_finite(read_tensors(file), modules) is None), None)
    instead = f"give train.resume={older}" if older else "start without it, or with train.warm_start of another file"
    raise WrongUse(f"{path} holds values that are not finite in {fault}; {instead}")


def refuse_earlier(path: Path, modules: nn.Module) -> None:
    """Raise WrongUse if its folder has a newer checkpoint than `path`: `auto`, as of a restart, would continue that."""
    own = _age(path.with_suffix(".json"))
    after = (file for file, age in _intact(path.parent) if age > own)
    newer = next((file for file in after if not_finite(read_tensors(file), modules) is None), None)
    if newer is not None:
        raise WrongUse(
            f"train.resume={path} would continue before {newer.name}, in the same folder, from which a restart would "
            "continue; give another run.dir, or train.resume=auto"
        )


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint and check its sha256 against its JSON, if there is one. Never runs code from the file.

    Raises WrongUse.
    """
    if not path.is_file():
        raise WrongUse(f"there is no checkpoint {path}; give train.resume=auto or an existing .pt")
    described = path.with_suffix(".json")
    if described.is_file() and read_json(described).get("sha256") != sha256(path):
        raise WrongUse(broken(path))
    content = read_tensors(path)
    if isinstance(content, dict) and "state_dict_backbone" in content:
        raise WrongUse(
            f"{path} is a full checkpoint of arcface_torch, which recipe=supervised resumes; "
            f"train.warm_start={path} takes its backbone, and recipe.head.warm_start=true its class centres"
        )
    if not isinstance(content, dict) or not {"state", "modules", "optimizer", "scaler"} <= content.keys():
        raise WrongUse(broken(path))
    # Fields that an older version lacked keep their defaults.
    if (
        not {"epoch", "seen", "step"} <= content["state"].keys() <= asdict(TrainState()).keys()
        or "tables" not in content
    ):
        raise WrongUse(
            f"{path} is from another version of this program; give train.warm_start={path} to use its backbone"
        )
    return content


def read_tensors(path: Path) -> Any:
    """Load tensors and plain values from a file of torch or safetensors, without running code from it. Raises WrongUse.

    The file is memory-mapped if its format allows that.
    """
    try:
        with path.open("rb") as file:
            if is_safetensors(file.read(16)):
                return safetensors.read(path)
        mapped = zipfile.is_zipfile(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # Lightning stores options as one; it has no code
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # the unpickler raises anything on damaged bytes
        raise WrongUse(broken(path)) from error


def broken(path: Path) -> str:
    foreign = what_it_is(path) or "is corrupt or not a Sniperface checkpoint; use an older one, or start without one"
    return f"{path} {foreign}"


def refuse_misfit(path: Path, saved: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raise WrongUse for the first tensor that is missing, unexpected or of another shape, before loading."""
    for name in [*wanted, *saved]:
        here, there = wanted.get(name), saved.get(name)
        if here is None or there is None or here.shape != there.shape:
            shapes = " and ".join("missing" if t is None else str(list(t.shape)) for t in (there, here))
            raise WrongUse(
                f"{path} does not fit this configuration: {name} is {shapes} in the file and here; "
                f"give the backbone, recipe and data it was made with, or another file"
            )


def newest(folder: RunFolder) -> Path | None:
    """The intact checkpoint of the most advanced training, or None. Skips damaged ones."""
    return next((path for path, _ in _intact(folder.checkpoints)), None)


def _intact(folder: Path) -> Iterator[tuple[Path, Age]]:
    """The intact checkpoints of a folder, newest first. Hashes a file only when it is asked for."""
    for file in sorted(folder.glob("*.json"), key=_age, reverse=True):
        path = file.with_suffix(".pt")
        if path.is_file() and read_json(file).get("sha256") == sha256(path):
            yield path, _age(file)


def prune(folder: RunFolder, keep: int, spare: Path) -> None:
    """Remove all but the `keep` newest checkpoints, JSON first: a half-removed one no longer counts as a checkpoint.

    The most accurate one of each measure stays: `fetch-checkpoint --which best` must find it at the end of a long run.
    `spare`, the one just written, stays too: after resuming from an earlier checkpoint, later ones may exist.
    """
    described = sorted(folder.checkpoints.glob("*.json"), key=_age)
    stay = {spare.stem, *most_accurate({file.stem: read_json(file) for file in described})}
    for file in described[:-keep]:
        if file.stem in stay:
            continue
        with contextlib.suppress(PermissionError):  # of Windows, while another command reads it: it stays
            remove(file)
            remove(file.with_suffix(".pt"))


def most_accurate(notes: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """The names of the checkpoints that are best on the held-out people or on a set; the earliest of equal ones.

    If there are people who choose the checkpoint, they alone do, not the people of the result.

    `notes`: by name, the JSON of each checkpoint, oldest first.
    """
    best: dict[str | None, tuple[float, str]] = {}
    divided = any((note.get("eval") or {}).get("validation_accuracy") is not None for note in notes.values())
    for name, note in notes.items():
        measured = note.get("eval") or {}
        for of, values in [(None, measured), *measured.get("sets", {}).items()]:
            accuracy = values.get("validation_accuracy" if divided and of is None else "accuracy")
            if accuracy is not None and (of not in best or accuracy > best[of][0]):
                best[of] = (accuracy, name)
    return {name for _, name in best.values()}


def estimated_bytes(
    modules: nn.Module, optimizer: torch.optim.Optimizer, tables: Mapping[str, Tensor] | None = None
) -> int:
    """Slightly more than the size of a checkpoint. The optimizer need not have created its state yet."""
    tensors = [t for t in [*modules.state_dict().values(), *(tables or {}).values()] if isinstance(t, Tensor)]
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    moments = 2 if isinstance(optimizer, torch.optim.AdamW) else 1
    size = sum(t.nbytes for t in tensors) + moments * sum(p.nbytes for p in trained)
    return size + 1024 * (len(tensors) + moments * len(trained)) + 2**20


def weights_digest(module: nn.Module) -> str:
    """A short hash of the values of a module's tensors."""
    digest = hashlib.sha256()
    for tensor in module.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


Age = tuple[int, bool, int]


def _age(described: Path) -> Age:
    """How far training had come, to sort the checkpoints of a run by their JSON.

    Not by the step alone: skipped updates end an epoch at the step of a checkpoint in its middle. The laptop and the
    supervisor sort alike: deploy/pod/base/checkpoints.py.
    """
    note = read_json(described)
    return int(note.get("epoch") or 0), bool(note.get("epoch_complete", True)), int(note.get("step", -1))
