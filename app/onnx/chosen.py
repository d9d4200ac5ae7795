"""The images that an exported file is compared on and calibrated with.

Letters: n images.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.config import Config
from app.data.dataset import open_configured, open_images
from app.data.sources import source
from app.errors import WrongUse

COMPARED_IMAGES = 32
CALIBRATION_IMAGES, LEAST_CALIBRATION_IMAGES = 128, 16


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
        orl = source.orl()
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
