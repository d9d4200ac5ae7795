"""Stage images where training reads them: reserve space, verify each block, and rename the file when it is complete."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from deploy import border
from deploy.errors import BadAnswer, StepFailed, WrongUse
from deploy.shell import LocalShell, Shell
from deploy.shell.ranges import Progress
from deploy.shell.transfer import send_pieces
from deploy.specs.machine import Machine
from deploy.specs.plan import TRAIN_LABELS, Plan
from deploy.specs.settings import Settings
from deploy.specs.shards import WHOLE, Shard
from deploy.specs.staged import disk_folder, staged_path, wanted_path
from deploy.workspace import encoded
from deploy.workspace.compression import Packing, packed_file
from deploy.workspace.dataset import (
    GIB,
    NAME,
    SIDE,
    Dataset,
    dataset_id,
    facts,
    marked,
    packing_of,
)
from deploy.workspace.npy import header_bytes, read_header
from deploy.workspace.shards import staged_blocks
from deploy.workspace.sources import HERE, Files, Place

MEMORY_FOR_TRAINING_BYTES = 4 << 30
SHM = PurePosixPath("/dev/shm")  # noqa: S108 - a path of the machine
SHM_FOR_NCCL_BYTES = 512 << 20  # ranks whose GPUs cannot reach each other exchange data through files there
MANIFEST_BYTES = (8 << 20) - 1  # of a staged file: the hashes of about 100,000 blocks


@dataclass(frozen=True)
class Staged:
    """Path of the images on the machine, and a description of how they get there."""

    path: PurePath
    words: str
    replaces: tuple[str, ...] = ()  # folders of other images of this user, which no run uses: RAM is too little for all


def choose_place(
    shell: Shell,
    settings: Settings,
    root: PurePath,
    dataset: Dataset,
    fraction: float,
    *,
    gpus: int = 0,
    shard: Shard = WHOLE,
    packing: Packing | None = None,
) -> Staged:
    """Choose where the images fit: in RAM as requested, else on disk. Changes no images.

    On a host that others use too, the user's own folder is made. `gpus`: of the machine; several of them need space in
    /dev/shm too. Raises StepFailed if the images fit nowhere, and WrongUse for a folder that cannot be made.
    """
    blocks = staged_blocks(dataset, fraction, shard)
    about = facts(dataset, fraction, packing, shard, blocks)
    user = _claim(shell, settings)
    wanted = wanted_path(settings, root, about, fraction, user)
    if str(wanted) == about.path:
        return Staged(wanted, f"read in place from {wanted}")
    needed = dataset.staged_bytes(blocks)
    kept_free = SHM_FOR_NCCL_BYTES if gpus > 1 and PurePosixPath(wanted).is_relative_to(SHM) else 0
    lacking = _lacks_room(shell, wanted, needed, kept_free)
    if lacking is None:
        return Staged(wanted, f"staged into {wanted}")
    if user and (replaces := _replaceable(shell, settings, wanted, needed, kept_free)):
        return Staged(wanted, f"staged into {wanted}, in the place of {', '.join(replaces)}", tuple(replaces))
    if dataset.where == "machine" or (dataset.where == HERE and settings.is_local):
        return Staged(type(root)(about.path), f"{lacking}: they are read from disk instead, {about.path}")
    on_disk = staged_path(disk_folder(root, about), about, fraction)
    if _lacks_room(shell, on_disk, needed) is None and on_disk != wanted:
        return Staged(on_disk, f"{lacking}: they are kept on disk instead, {on_disk}")
    free = max(0, shell.free_bytes(wanted.parent) - kept_free)
    fits = math.floor(100 * fraction * free / max(1, needed)) / 100
    advice = (
        f"give --fraction {fits:g}, or a machine with more room" if 0 < fits < fraction else "give a larger machine"
    )
    raise StepFailed(f"{lacking}, and {root} has too little room too: {advice}")


def _claim(shell: Shell, settings: Settings) -> str | None:
    """Make the user's own folder where others stage too, before anything in it is read. Returns the user's name."""
    if settings.stage_to is None or not settings.shares_ram:
        return None
    try:
        return shell.claim_ram(settings.stage_to)
    except OSError as error:
        raise WrongUse(
            f"{error.filename} cannot hold the images: {error.strerror}. Remove it, or set another stage_to in "
            f"{settings.where}, or stage_to: null"
        ) from error


def _replaceable(shell: Shell, settings: Settings, wanted: PurePath, needed: int, kept_free: int) -> list[str]:
    """Return the folders of other images, oldest first, without which the images fit into RAM; [] if they do not."""
    assert settings.stage_to is not None
    chosen: list[str] = []
    freed = 0
    for each in shell.staged_images(settings.stage_to):
        if not each.use and each.folder != str(wanted.parent):
            chosen.append(each.folder)
            freed += each.bytes
            if _lacks_room(shell, wanted, needed, kept_free, freed) is None:
                return chosen
    return []


def free(shell: Shell, settings: Settings, place: Staged) -> None:
    """Remove the other images that a place replaces. Those that a run has begun to use meanwhile stay."""
    if place.replaces and settings.stage_to is not None:
        shell.free_images(settings.stage_to, place.replaces)


def stage(
    shell: Shell,
    machine: Machine,
    code: PurePath,
    plan: Plan,
    dataset: Dataset,
    progress: Progress,
    packing: Packing | None = None,
    free: Callable[[], None] = lambda: None,
) -> str | None:
    """Stage the images where the plan reads them. Returns a description, or None if they are read in place.

    `free`: makes room, if the images are not there already.

    Space is reserved before the first byte, every block is verified against the manifest, an interrupted copy resumes,
    and the file gets its name only when it is complete. Images on the laptop are uploaded, perhaps packed. Images on
    the machine or at a URL are copied by the machine itself (`pod/agent/files.py`).
    Raises WrongUse for images of others in their place.
    """
    if not plan.stage:
        return None
    destination = machine.path(plan.data_path)
    shard, selected = plan.data.shard, dataset.kept_blocks(plan.fraction)
    blocks = staged_blocks(dataset, plan.fraction, shard)
    manifest = _staged_manifest(dataset, blocks, plan.fraction, packing, shard)
    there, size = _manifest_there(shell, destination)
    if dataset.train_labels is not None:  # small, and may differ from those of the previous run
        own = _labels_of(LocalShell(), dataset, dataset.train_labels, selected)
        shell.write(destination.with_name(TRAIN_LABELS), own)
    if size is not None and there and _same(there, manifest) and size == dataset.staged_bytes(blocks):
        if packing:
            shell.remove(packed_file(machine).parent)  # of a call that was interrupted before its last step
        return f"already there: {destination}"
    others = [each for each in _same_place(destination) if shell.size(each) is not None]
    if others:
        _refuse_to_replace(others[0], plan, is_ours=bool(there))
    free()
    for each in (*others, destination.with_name(encoded.OFFSETS)):
        shell.remove(each)  # another data set: it takes the space of this one
    hashes = _send(shell, machine, code, dataset, blocks, destination, progress, packing)
    if dataset.offsets is not None:
        rows = map(dataset.rows_of, blocks)
        encoded.write_offsets(shell, destination.with_name(encoded.OFFSETS), dataset.offsets, rows)
    if dataset.labels is not None:
        labels = _labels_of(dataset.files, dataset, dataset.labels, selected)
        shell.write(destination.with_name("labels.npy"), labels)
    else:
        shell.remove(destination.with_name("labels.npy"))
    manifest |= _with_hashes(manifest, dataset, hashes, packing, is_whole=len(selected) == dataset.block_count)
    # Before the rename: an interruption in between leaves a manifest without images, which is staged again.
    shell.write(destination.with_name("manifest.json"), (json.dumps(manifest, indent=1) + "\n").encode())
    shell.replace(_part(destination), destination)
    if packing:
        shell.remove(packed_file(machine).parent)
    sent = f", sent {packing.words}" if packing else ""
    return f"staged {dataset.staged_bytes(blocks) / GIB:.2f} GiB into {destination}{sent}"


def _refuse_to_replace(other: PurePath, plan: Plan, *, is_ours: bool) -> None:
    """Raise WrongUse if images in the place of this run's are not this project's, or a queued run uses them."""
    if not is_ours:
        raise WrongUse(
            f"{other} already exists, but this project did not stage it: remove it, or set another stage_to in "
            f"the file of target '{plan.target}'"
        )
    if plan.queue:
        raise WrongUse(
            f"{other} holds other images, which the runs on this machine use: wait until they end, or use a "
            "target with another stage_to"
        )


def _send(
    shell: Shell,
    machine: Machine,
    code: PurePath,
    dataset: Dataset,
    blocks: list[int],
    destination: PurePath,
    progress: Progress,
    packing: Packing | None,
) -> list[str]:
    """Write the images to the part file, packed, from the laptop, or as a copy. Returns the SHA-256 of each block."""
    part = _part(destination)
    if packing is None and (dataset.where != HERE or machine.is_here):  # the machine copies them itself
        order = machine.root / "staging.json"
        header = base64.b64encode(dataset.staged_header(blocks)).decode("ascii")
        pieces = [asdict(piece) for piece in dataset.pieces(blocks)]
        value = {"source": str(dataset.path), "part": str(part), "header": header, "pieces": pieces}
        shell.write(order, json.dumps(value).encode("utf-8"), private=True)  # a URL may carry a signature
        hashes: list[str] = []
        for line in shell.stream([machine.python, "-m", "deploy.pod.agent.files", str(order)], cwd=code, again=True):
            if line.startswith("{"):
                said = border.progress(line, f"{shell.name}: the copy of the data")
                progress(said["done_bytes"], said["all_bytes"])
                hashes = said.get("sha256", hashes)
        return hashes
    try:  # space for the whole file, before the first byte
        shell.truncate(part, dataset.staged_bytes(blocks))
        shell.write_at(part, 0, dataset.staged_header(blocks))
    except OSError as error:
        raise StepFailed(
            f"{destination.parent} has no room for {dataset.staged_bytes(blocks) / GIB:.2f} GiB: {error.strerror}"
        ) from error
    if packing is not None:
        return packing.send(shell, machine, code, part, progress)
    return send_pieces(shell, Path(str(dataset.path)), part, dataset.pieces(blocks), progress)


def _with_hashes(
    manifest: dict[str, Any], dataset: Dataset, hashes: list[str], packing: Packing | None, *, is_whole: bool
) -> dict[str, Any]:
    """Return the entries of a manifest that only the SHA-256 of the staged blocks decide."""
    originals = packing.hashes("original_sha256") if packing else hashes
    of = marked(dataset.manifest.get("dataset_id") or dataset_id(originals), packing)
    of_part = dataset_id(hashes) + (f"-{manifest['packed']}" if manifest["packed"] else "")
    selection = {**manifest["selection"], "of": of} if manifest["selection"] else manifest["selection"]
    return {"blocks": hashes, "dataset_id": of if is_whole else of_part, "selection": selection}


def is_there(
    shell: Shell, settings: Settings, root: PurePath, dataset: Dataset, fraction: float, packing: str, shard: Shard
) -> bool:
    """Return whether a machine already has the file of a shard, in RAM or on its disk. `packing`: how it is sent."""
    blocks = staged_blocks(dataset, fraction, shard)
    packed = packing_of(settings.notes, dataset, fraction, packing, blocks)
    about = facts(dataset, fraction, packed, shard)
    wanted = _staged_manifest(dataset, blocks, fraction, packed, shard)
    user = shell.user() if settings.shares_ram else None
    places = {
        wanted_path(settings, root, about, fraction, user),
        staged_path(disk_folder(root, about), about, fraction),
    }
    found = (_manifest_there(shell, path) for path in places)
    return any(size == dataset.staged_bytes(blocks) and _same(manifest, wanted) for manifest, size in found)


def _staged_manifest(
    dataset: Dataset, blocks: list[int], fraction: float, packing: Packing | None, shard: Shard
) -> dict[str, Any]:
    """Return the staged file's own manifest. Its `source` shows a changed file if there is no manifest to compare.

    `blocks` are those of `shard`. Lossy images have their own block hashes. Their manifest keeps `packed`, also when a
    copy of them is staged again.
    """
    rows = dataset.count_rows(blocks)
    known: list[str] = dataset.manifest.get("blocks", [])
    own = packing.hashes("unpacked_sha256") if packing else []
    selection, selected = dataset.manifest.get("selection"), dataset.kept_blocks(fraction)
    if selection is None and fraction < 1:
        selection = {"of": dataset.manifest.get("dataset_id"), "fraction": fraction, "blocks": selected}
    part = {"number": shard.number, "of": shard.of, "rows": dataset.count_rows(selected)} if shard.of > 1 else None
    return {
        "dataset_id": None,
        "name": dataset.name,
        "rows": rows,
        **({} if dataset.offsets is None else {"format": "encoded"}),
        "dtype": "uint8",
        "shape": [rows, SIDE, SIDE, 3],
        "block_rows": dataset.block_rows,
        "blocks": own or ([known[block] for block in blocks] if known else []),
        "packed": packing.kind if packing and packing.mark else dataset.manifest.get("packed"),
        "held_out_rows": dataset.held_out_rows,
        "labels_sha256": None,
        "selection": selection,
        **({"shard": part} if part else {}),
        "source": {"path": str(dataset.path), "bytes": dataset.size, "modified_ns": dataset.modified_ns},
    }


def _manifest_there(shell: Shell, destination: PurePath) -> tuple[dict[str, Any], int | None]:
    """Return the manifest beside a staged file, {} without one of ours, and the size of the file."""
    path = destination.with_name("manifest.json")
    files = shell.ahead({path: MANIFEST_BYTES + 1, destination: 0})
    try:
        data = files.read(path, limit=MANIFEST_BYTES + 1)
        value = border.document(data, f"{shell.name}: manifest.json", MANIFEST_BYTES)
    except (OSError, BadAnswer):
        value = {}
    return value if "source" in value else {}, files.size(destination)


def _same(there: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Return whether the staged file is the wanted one: by block hashes if they are known, else by its source."""
    keys = ("rows", "block_rows", "held_out_rows", "blocks" if wanted["blocks"] else "source")
    return all(there.get(key) == wanted.get(key) for key in (*keys, "packed", "shard"))


def _same_place(destination: PurePath) -> tuple[PurePath, PurePath]:
    """Return the files of images that use the manifest in a folder: pixels, or image files."""
    return destination.with_name(NAME), destination.with_name(encoded.NAME)


def _part(destination: PurePath) -> PurePath:
    return destination.with_name(destination.name + ".part")


def _lacks_room(
    shell: Shell, destination: PurePath, needed: int, kept_free: int = 0, freed_in_ram: int = 0
) -> str | None:
    """Return why `needed` bytes do not fit at `destination`, or None. An earlier copy there counts as free space.

    `freed_in_ram`: bytes of other files there that may be removed, if they are in RAM.

    Files in RAM count against the machine's memory, and training needs some too.
    """
    folder = destination.parent
    room = shell.room(folder, _part(destination), *_same_place(destination))
    own_bytes = room.own_bytes + (freed_in_ram if room.in_ram else 0)
    free = room.free_bytes + own_bytes - kept_free
    if needed > free:
        for_nccl = " besides the space that NCCL needs" if kept_free else ""
        return f"{folder} has {max(0, free) / GIB:.2f} GiB free{for_nccl} and the images need {needed / GIB:.2f} GiB"
    limit = shell.hardware().memory_bytes if room.in_ram else None
    if limit is not None:
        left = limit - shell.memory_used_bytes() + own_bytes - min(MEMORY_FOR_TRAINING_BYTES, limit // 4)
        if needed > left:
            return f"{left / GIB:.2f} GiB of memory are available and the images need {needed / GIB:.2f} GiB"
    return None


def _labels_of(files: Files, dataset: Dataset, labels: Place, blocks: list[int]) -> bytes:
    """Return the contents of a label file for the staged rows only."""
    header = read_header(labels, files)
    width = int(header.dtype[-1])
    block_bytes = dataset.block_rows * width
    rows = [
        files.read(labels, header.data_offset + block * block_bytes, len(dataset.rows_of(block)) * width)
        for block in blocks
    ]
    return header_bytes(header.dtype, (dataset.count_rows(blocks),)) + b"".join(rows)
