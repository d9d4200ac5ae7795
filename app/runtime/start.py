"""What a run begins with: a fresh start, a checkpoint to continue, or the backbone of a file."""

from __future__ import annotations

from pathlib import Path

from app.config import Config
from app.errors import WrongUse
from app.runtime import checkpoint
from app.runtime.dist import World
from app.runtime.finite import NotFinite
from app.runtime.folder import RunFolder


def refuse_unfit_files(config: Config, here: World) -> None:
    """Refuse, before anything is written, checkpoints that cannot be read and a folder that another run has.

    Rank 0 decides, whatever lies on other machines. Raises WrongUse.
    """
    if not here.is_main:
        return
    resume, warm_start = config.train.resume, config.train.warm_start
    for key, path in (("train.resume", resume), ("train.warm_start", warm_start)):
        if path in (None, "none", "auto"):
            continue
        if not Path(path).is_file():
            raise WrongUse(f"{key}={path} is no file; give one such as runs/RUN/checkpoints/epoch_014.pt")
        checkpoint.read_tensors(Path(path), in_place=True)
    if warm_start is not None:
        try:
            checkpoint.refuse_nan_weights(Path(warm_start), checkpoint.read_backbone(Path(warm_start)))
        except NotFinite as error:
            raise WrongUse(f"train.warm_start: {error}") from error
    if config.run.dir is None:
        return
    folder = RunFolder(Path(config.run.dir))
    if resume in (None, "none") and checkpoint.newest(folder):
        raise WrongUse(
            f"run.dir={folder.path} holds checkpoints of an earlier run; "
            "give train.resume=auto to go on with it, or another run.dir"
        )


def to_resume(wish: str | None, folder: RunFolder, here: World) -> tuple[Path | None, bool]:
    """The checkpoint to go on from, and whether it is one of this run folder; rank 0's answer counts.

    `auto` is the newest whole one of the folder, none is a fresh start.
    """
    if wish in (None, "none") or not here.is_main:
        return None, False
    path = checkpoint.newest(folder) if wish == "auto" else Path(wish)
    return path, path is not None and path.parent == folder.checkpoints
