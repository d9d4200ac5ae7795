"""The start of a run: fresh, from a checkpoint, or with the backbone of a file."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from app.config import Config
from app.errors import WrongUse
from app.runtime import checkpoint, weights
from app.runtime.dist import World
from app.runtime.finite import NotFinite
from app.runtime.folder import RunFolder
from app.runtime.tensorboard import refuse_without

NO_WANDB = (
    "track=wandb needs the package wandb, which is not installed here: "
    "`python bootstrap.py invoke train --set track=wandb` installs it, or give track=none"
)


def refuse_unfit_files(config: Config, here: World) -> None:
    """Raise WrongUse, before anything is written, for unreadable checkpoints and the folder of an earlier run.

    Rank 0 checks; the files of other machines do not matter.
    """
    if not here.is_main:
        return
    if config.track == "tensorboard":
        refuse_without()
    if config.track == "wandb" and importlib.util.find_spec("wandb") is None:
        raise WrongUse(NO_WANDB)
    resume, warm_start, teacher = config.train.resume, config.train.warm_start, config.recipe.distill.teacher
    for key, path in (("train.resume", resume), ("train.warm_start", warm_start), ("recipe.distill.teacher", teacher)):
        if path is None or (key == "train.resume" and path in ("none", "auto")):
            continue
        if not Path(path).is_file():
            raise WrongUse(f"{key}={path} is not a file; give one such as runs/RUN/checkpoints/epoch_014.pt")
        if not (key == "recipe.distill.teacher" and path.endswith(".onnx")):
            checkpoint.read_tensors(Path(path))
    if warm_start is not None:
        try:
            weights.refuse_nan_weights(Path(warm_start), weights.read_backbone(Path(warm_start)))
        except NotFinite as error:
            raise WrongUse(f"train.warm_start: {error}") from error
    if config.run.dir is None:
        return
    folder = RunFolder(Path(config.run.dir))
    if resume in (None, "none") and checkpoint.newest(folder):
        raise WrongUse(
            f"run.dir={folder.path} holds checkpoints of an earlier run; "
            "give train.resume=auto to continue it, or another run.dir"
        )


def to_resume(wish: str | None, folder: RunFolder, here: World) -> tuple[Path | None, bool]:
    """The checkpoint to resume from, and whether it is in this run folder. Only rank 0's answer counts.

    `auto` means the newest intact checkpoint of the folder; `none` means a fresh start.
    """
    if wish in (None, "none") or not here.is_main:
        return None, False
    path = checkpoint.newest(folder) if wish == "auto" else Path(wish)
    return path, path is not None and path.parent == folder.checkpoints
