"""Mine pseudo-IDs with a trained backbone: python -m app.mine checkpoint=PATH [out=DIR] [key=value …]

    checkpoint=PATH      a checkpoint of a run; the settings are those of the run's config.yaml
    out=DIR              where the results go (default: mining/<name of the checkpoint> in the run's folder)
    key=value            changes a setting, such as data.binary_cache_path=… or mining.method=parity

Writes pseudo_ids.npy (int32 [N], -1: none), report.json, and a contact sheet, clusters.png. Under torchrun the
processes share the work. The same command continues an interrupted call where it stopped.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from app.config import NO_ID, Config, load, own_words
from app.data.dataset import Dataset, open_configured
from app.errors import WrongUse
from app.files import atomic, make_folder, write_json
from app.mining.knn import refuse_without_faiss
from app.mining.refresh import Interlude, embed_share, refresh
from app.models import build_backbone
from app.runtime import dist
from app.runtime.command import answer
from app.runtime.dist import ALONE, World
from app.runtime.folder import RunFolder
from app.runtime.precision import settle
from app.runtime.stop import Stop
from app.runtime.weights import load_backbone


def main(argv: list[str]) -> int:
    stop = Stop().listen()

    def work() -> tuple[str, int]:
        with stop.at_once(ALONE):
            path, out, overrides = decide(argv)
            config = load(overrides, base=RunFolder(path.parent.parent).config)
            refuse_without_faiss(config.mining.backend)
            data = open_configured(config.data)
            make_folder(out, "out")
        with dist.world() as here, stop.at_once(here):
            return mine(path, out, config, data, here, stop), 0

    return answer(argv, __doc__ or "", work)


def decide(argv: list[str]) -> tuple[Path, Path, list[str]]:
    """The checkpoint, the output folder, and the overrides for the configuration. Raises WrongUse."""
    own, overrides = own_words(argv, ("checkpoint", "out"))
    if not own.get("checkpoint"):
        raise WrongUse("checkpoint=… is missing; give one such as checkpoint=runs/RUN/checkpoints/epoch_014.pt")
    path = Path(own["checkpoint"]).absolute()
    if not path.is_file():
        raise WrongUse(f"there is no checkpoint {path}; give one such as runs/RUN/checkpoints/epoch_014.pt")
    folder = RunFolder(path.parent.parent)
    if not folder.config.is_file():
        raise WrongUse(f"{folder.config} is missing, and {path.name} needs it; give a checkpoint in a run's folder")
    out = Path(own["out"]) if own.get("out") else folder.mining / path.stem
    return path, out.absolute(), overrides


def mine(path: Path, out: Path, config: Config, data: Dataset, here: World, stop: Stop) -> str:
    """Write the pseudo-IDs of `data` to `out`; returns the text to print."""
    config.train.precision = settle(config.train.precision, here)
    backbone = build_backbone(config.backbone).to(here.device)
    load_backbone(path, backbone)
    interlude = Interlude(out, stop.asked.is_set, tell if here.is_main else quiet)
    shard = embed_share(backbone, config, data, here, interlude)
    nothing_yet = np.full(len(data.images), NO_ID, np.int64)
    ids, report = refresh(
        shard, nothing_yet, config, data, here, interlude, seed=config.train.seed, sheet=out / "clusters.png"
    )
    if here.is_main:
        with atomic(out / "pseudo_ids.npy") as file:
            np.save(file, ids.astype(np.int32))
        write_json(out / "report.json", {"checkpoint": path.name, "dataset_id": data.dataset_id, **report})
    return sentence(report, out)


def sentence(report: dict[str, Any], out: Path) -> str:
    purity = "" if report["purity"] is None else f", purity {report['purity']:.1%}"
    warning = "" if report["accepted"] else f"; training would reject them: {report['why']}"
    return f"{out}: {report['count']} pseudo-IDs, coverage {report['coverage']:.1%}{purity}{warning}"


def tell(done: int, total: int) -> None:
    print(f"  embedded {done} of {total} images", flush=True)


def quiet(done: int, total: int) -> None:
    """Progress of the other processes: print nothing."""


if __name__ == "__main__":
    dist.leave(main(sys.argv[1:]))
