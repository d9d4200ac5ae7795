"""PURE: what a plan is made from. Everything is looked up before, so that making a plan needs no I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import PurePath
from typing import Any

from deploy.specs.estimate import Measured
from deploy.specs.machine import Card, Hardware, Image, Machine, Place
from deploy.specs.shards import WHOLE, Shard


@dataclass(frozen=True)
class CodeFacts:
    """State of the working tree. `tree` is its git id if nothing has changed since the commit."""

    kind: str  # "git", or "copy" where the folder is not a git repository
    commit: str | None
    changed_files: int
    tree: str | None
    untracked: tuple[str, ...] = ()  # files that are uploaded although git does not track them
    suspicious: tuple[str, ...] = ()  # tracked files that look like credentials
    left_out: tuple[str, ...] = ()  # not uploaded, although a user may expect it
    excluded_files: int | None = None  # by `exclude:` of the target; None: it has no patterns
    excluded_bytes: int = 0


@dataclass(frozen=True)
class DataFacts:
    """The images of a run. `ready` is False for images that are not prepared yet, or on a machine not reached yet."""

    name: str
    path: str
    rows: int
    train_rows: int  # after the fraction
    bytes: int  # of the file that training reads, after the fraction where it is staged
    dataset_id: str | None
    labels: str | None = None  # only if they are not beside the images
    train_labels: str | None = None  # labels to learn instead, such as pseudo-IDs
    ready: bool = True
    where: str = "here"  # or "machine", or "url"
    packed: str | None = None  # upload format: `lossless`, or lossy such as `jpeg95`
    packed_bytes: int | None = None  # None: not packed yet
    classes: int | None = None  # that recipe supervised learns; None where not counted
    file_name: str = "images.npy"  # where it is staged
    staged_as: str = ""  # its folder's name on a host that others use too: name and id, or a mark of the source
    shard: Shard = WHOLE  # that the machine gets; `bytes` are those of its file
    whole_rows: int = 0  # to train on without the fraction; 0 where not known, like the next
    block_rows: int = 0  # a fraction takes whole blocks


@dataclass(frozen=True)
class Continuation:
    """An unfinished run to continue: its id, the number of this attempt, and where to resume from."""

    run_id: str
    attempt: int
    resume: str


@dataclass(frozen=True)
class Facts:
    """All looked-up inputs, so that `make` does no I/O.

    Before a remote machine is provisioned, values that only it knows are None. The plan is made again once they are
    known.
    """

    now: datetime
    token: str  # four hexadecimal digits: distinguish runs started in the same second
    python: str
    code: CodeFacts
    data: DataFacts
    config: Mapping[str, Any]  # resolved by `python -m app.config`
    hardware: Hardware | None
    windows: bool = False
    measured: Sequence[Measured] = ()  # newest first
    phases: Sequence[Mapping[str, float]] = ()  # seconds per phase of earlier runs on this target
    usd_per_hour: float | None = 0.0  # None: the provider reports no price
    continues: Continuation | None = None
    machine: Machine | None = None
    snapshot: str | None = None
    user: str | None = None  # on the machine; None where not known yet
    data_path: PurePath | None = None  # where training reads the images, once free space is known
    place: Place | None = None  # of this machine, after the rendezvous of several machines
    image: Image | None = None  # see Provider.image
    card: Card | None = None  # GPUs that the provider would rent first; for plans made before the machine is reached
    memory: Mapping[str, Any] = field(default_factory=dict)  # conf/memory.json: figures per backbone
    warm: str | None = None  # the rented machine that is used again; None: a new one, or not known
    secrets: tuple[str, ...] = ()  # names of environment variables of this computer that the machine gets
