"""The images that an exported file is compared on, calibrated with and measured on.

Letters: n images.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.config import Config
from app.data.dataset import open_configured, open_images
from app.data.sources import source as sources
from app.errors import WrongUse
from app.evaluation.image_set import ImageSet
from app.evaluation.sets import held_out, open_set

COMPARED_IMAGES = 32
CALIBRATION_IMAGES, LEAST_CALIBRATION_IMAGES = 128, 16
HELD_OUT_IMAGES = 400  # each is embedded by both files, so more would make the export of a large network slow


def faces(given: str | None, of_run: str | None, *, between: bool = False) -> tuple[NDArray[np.uint8], str]:
    """Evenly spaced real images [n, 112, 112, 3] of a data set, and its name; or images `between` those.

    Raises WrongUse.
    """
    choice = calibration_rows if between else evenly
    if given or (of_run and Path(of_run).is_file()):
        path = Path(given or of_run or "")
        images = open_images(path)
        return images[choice(len(images))], str(path)
    try:
        orl = sources.orl()
    except WrongUse as error:
        raise WrongUse("there are no images to compare on; give check_images=PATH of an images.npy") from error
    files = orl.read(0, orl.count)
    return orl.decode([files[row] for row in choice(orl.count)]), orl.name


def trained_on(config: Config) -> tuple[NDArray[np.uint8] | None, str]:
    """Images [n, 112, 112, 3] that the run trained on, other ones than those of `faces`; None if they are not here."""
    try:
        data = open_configured(config.data)
    except WrongUse:
        return None, ""
    rows = np.setdiff1d(data.train_rows, evenly(len(data.images)))
    if len(rows) < LEAST_CALIBRATION_IMAGES:
        return None, ""
    return data.images[rows[evenly(len(rows), CALIBRATION_IMAGES)]], str(config.data.binary_cache_path)


def evenly(count: int, wanted: int = COMPARED_IMAGES) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, count - 1, wanted).round().astype(np.int64))


def calibration_rows(count: int) -> NDArray[np.int64]:
    """Evenly spaced rows without those of `evenly`, so that a comparison sees other images than the calibration."""
    rest = np.setdiff1d(np.arange(count), evenly(count))
    return rest[evenly(len(rest), CALIBRATION_IMAGES)] if len(rest) else rest


def sets_of(given: str | None, config: Config) -> list[ImageSet]:
    """The named sets; without any, the held-out people of the run's own data set, if it is here. Raises WrongUse."""
    if given is not None:
        return [open_set(Path(name)) for name in given.split(",") if name]
    few = replace(config.train.eval, max_images=min(config.train.eval.max_images, HELD_OUT_IMAGES))
    try:
        return [held_out(replace(config, train=replace(config.train, eval=few)))]
    except WrongUse:
        return []
