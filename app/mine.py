"""Mine pseudo-IDs with a trained backbone: python -m app.mine checkpoint=PATH [out=DIR] [key=value …]
or from an array: python -m app.mine embeddings=FILE.npy [labels=FILE.npy] out=DIR [mining.key=value …]

    checkpoint=PATH      a checkpoint of a run; the settings are those of the run's config.yaml
    embeddings=FILE.npy  float [N, D], one row an image; rows are scaled to length 1
    labels=FILE.npy      integers [N]: the person of each image, below 0 if unknown; they affect only metrics
    out=DIR              where the results go (default: mining/<name of the checkpoint> in the run's folder)
    key=value            changes a setting, such as data.binary_cache_path=… or mining.method=parity

Writes pseudo_ids.npy (int32 [N], -1: none), report.json, and with checkpoint= a contact sheet, clusters.png. Under
torchrun the processes share the work. The same command continues an interrupted call where it stopped.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from app.config import NO_ID, Config, load, own_words
from app.data.dataset import Dataset, open_configured
from app.data.divide import divide
from app.errors import WrongUse
from app.files import atomic, make_folder, shown, write_json
from app.mining.gate import bcubed_f, pair_precision
from app.mining.knn import refuse_without_faiss
from app.mining.refresh import Interlude, embed_share, refresh
from app.models import build_backbone
from app.output import say
from app.runtime import dist
from app.runtime.command import answer
from app.runtime.dist import ALONE, World, share
from app.runtime.folder import RunFolder
from app.runtime.precision import settle
from app.runtime.stop import Stop
from app.runtime.weights import load_backbone

ROWS_AT_ONCE = 2**16  # scaled to length 1


def main(argv: list[str]) -> int:
    stop = Stop().listen()

    def work() -> tuple[str, int]:
        if any(word.startswith("embeddings=") for word in argv):
            with dist.world() as here, stop.at_once(here):
                return mine_array(argv, here), 0
        with stop.at_once(ALONE):
            path, out, overrides = decide(argv)
            config = load(overrides, base=RunFolder(path.parent.parent).config)
            refuse_without_faiss(config.mining.backend, config.mining.search)
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
    data = divide(data, config.data, here)
    config.train.precision = settle(config.train.precision, here)
    backbone = build_backbone(config.backbone).to(here.device)
    load_backbone(path, backbone)
    interlude = Interlude(out, stop.asked.is_set, tell)
    shard = embed_share(backbone, config, data, here, interlude)
    nothing_yet = np.full(len(data.images), NO_ID, np.int64)
    ids, report = refresh(
        shard, nothing_yet, config, data, here, interlude, seed=config.train.seed, sheet=out / "clusters.png"
    )
    if here.is_main:
        write(out, ids, {"checkpoint": path.name, "dataset_id": data.dataset_id, **report})
    return sentence(report, out)


def mine_array(argv: list[str], here: World) -> str:
    """Write the pseudo-IDs of an array of embeddings; return a sentence. Raises WrongUse, SearchInexact."""
    from app.mining.pseudo_ids import find_pseudo_ids  # its SciPy and numba take a second that --help need not

    own, overrides = own_words(argv, ("embeddings", "labels", "out"))
    if not own.get("out"):
        raise WrongUse("out=… is missing; give a folder for the results such as out=mining")
    embeddings = load_array(own["embeddings"], "embeddings", 2, "f")
    labels = load_array(own["labels"], "labels", 1, "iu") if own.get("labels") else None
    if labels is not None and len(labels) != len(embeddings):
        raise WrongUse(f"labels= has {len(labels)} rows and embeddings= has {len(embeddings)}; give one label a row")
    config, out = load(overrides).mining, Path(own["out"]).absolute()
    refuse_without_faiss(config.backend, config.search)
    make_folder(out, "out")
    shard = unit_rows(share(embeddings, here)).to(here.device)
    truth = None if labels is None else numbered(labels)
    ids, judged = find_pseudo_ids(shard, np.full(len(embeddings), NO_ID, np.int64), truth, config, here, seed=0)
    report = judged.as_dict()
    if truth is not None:
        known = truth >= 0
        of = ids[known], truth[known]
        report |= {"bcubed_f": bcubed_f(*of), "precision": pair_precision(*of)}
    if here.is_main:
        write(out, ids, report)
    return sentence(report, out) + agreement(report)


def write(out: Path, ids: NDArray[np.int64], report: dict[str, Any]) -> None:
    with atomic(out / "pseudo_ids.npy") as file:
        np.save(file, ids.astype(np.int32))
    write_json(out / "report.json", report)


def numbered(labels: NDArray[Any]) -> NDArray[np.int32]:
    """Number the people of labels [N] of any size from 0 on; -1 where the person is unknown."""
    return np.where(labels < 0, NO_ID, np.unique(labels, return_inverse=True)[1]).astype(np.int32)


def load_array(name: str, word: str, dimensions: int, kinds: str) -> NDArray[Any]:
    """Return the array in the file `name`, memory-mapped. Raises WrongUse if it does not fit the argument `word`."""
    wanted = f"{word}= must be a .npy file of {'floats [N, D]' if dimensions == 2 else 'integers [N]'}"
    try:
        array = np.load(name, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # an empty file or a damaged header: errors of no common base class
        why = error.strerror if isinstance(error, OSError) and error.strerror else "it is not a complete .npy file"
        raise WrongUse(f"{name} cannot be read ({why}); {wanted}") from None
    if not isinstance(array, np.ndarray):
        raise WrongUse(f"{name} holds several arrays; {wanted}")
    if array.ndim != dimensions or array.dtype.kind not in kinds:
        raise WrongUse(f"{name} holds {array.dtype} of shape {list(array.shape)}; {wanted}")
    return array


def unit_rows(rows: NDArray[Any]) -> Tensor:
    """Return rows [n, D] of any float type, order and length as fp32 of length 1; zeros and NaN stay.

    A power of two scales each row first, which is exact: fp32 has no room for the squares of 1e30 or 1e-30.
    """
    scaled = np.empty(rows.shape, np.float32)  # in C order, as FAISS needs it
    for at in range(0, len(rows), ROWS_AT_ONCE):
        some = np.asarray(rows[at : at + ROWS_AT_ONCE])
        exponents = np.frexp(np.abs(some).max(axis=1, keepdims=True, initial=0))[1]
        scaled[at : at + ROWS_AT_ONCE] = np.ldexp(some, -exponents)
    return F.normalize(torch.from_numpy(scaled), dim=1)


def agreement(report: dict[str, Any]) -> str:
    """Return the end of the sentence: the largest cluster and, with labels, the agreement with them."""
    if "bcubed_f" not in report:
        return f", largest {report['largest']}"
    return (
        f", largest {report['largest']}, pairwise F {report['pair_f']:.3f} (precision {report['precision']:.3f}), "
        f"BCubed F {report['bcubed_f']:.3f}"
    )


def sentence(report: dict[str, Any], out: Path) -> str:
    purity = "" if report["purity"] is None else f", purity {report['purity']:.1%}"
    warning = "" if report["accepted"] else f"; training would reject them: {report['why']}"
    measured = f"coverage {report['coverage']:.1%}, separated {report['separated']:.1%}{purity}"
    return f"{shown(out)}: {report['count']} pseudo-IDs, {measured}{warning}"


def tell(done: int, total: int) -> None:
    say(f"  embedded {done} of {total} images")


if __name__ == "__main__":
    dist.leave(main(sys.argv[1:]))
