"""Types of arrays, under torch's names."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
