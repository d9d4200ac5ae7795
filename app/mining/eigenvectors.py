"""The widest eigenvectors of many small matrices, by LAPACK.

scipy's function takes longer for a call than LAPACK takes for a small matrix, and keeps the GIL. So a compiled loop
calls the routine in scipy's library. The name of the routine, not its address, is in the compiled code on disk.
"""

from __future__ import annotations

import llvmlite.binding
import numpy as np
from numba import njit, types
from numba.extending import get_cython_function_address
from numpy.typing import NDArray

llvmlite.binding.add_symbol("sniperface_ssyevr", get_cython_function_address("scipy.linalg.cython_lapack", "ssyevr"))
_ssyevr = types.ExternalFunction("sniperface_ssyevr", types.void(*[types.voidptr] * 21))


@njit(cache=True, nogil=True)
def widest_eigenvectors(matrices: NDArray[np.float32], vectors: NDArray[np.float32]) -> int:
    """Fill `vectors` [m, s] with the unit eigenvector of the largest eigenvalue of each of `matrices` [m, s, s].

    The matrices are symmetric, and overwritten. Returns how many of them LAPACK did not solve.
    """
    m, s, _ = matrices.shape
    letters = np.array([ord("V"), ord("I"), ord("U")], np.uint8)  # vectors, those asked for by place, of the upper half
    size, found, failed = np.array([s], np.int32), np.zeros(1, np.int32), np.zeros(1, np.int32)
    unused, values, support = np.zeros(1, np.float32), np.empty(s, np.float32), np.empty(2 * s, np.int32)
    room, whole_room = np.array([70 * s], np.int32), np.array([10 * s], np.int32)  # 70: blocks of 64 columns, and 6
    work, whole_work = np.empty(70 * s, np.float32), np.empty(10 * s, np.int32)
    unsolved = 0
    for each in range(m):
        _ssyevr(
            letters.ctypes,
            letters[1:].ctypes,
            letters[2:].ctypes,
            size.ctypes,
            matrices[each].ctypes,
            size.ctypes,
            unused.ctypes,
            unused.ctypes,
            size.ctypes,
            size.ctypes,
            unused.ctypes,
            found.ctypes,
            values.ctypes,
            vectors[each].ctypes,
            size.ctypes,
            support.ctypes,
            work.ctypes,
            room.ctypes,
            whole_work.ctypes,
            whole_room.ctypes,
            failed.ctypes,
        )
        unsolved += failed[0] != 0
    return unsolved
