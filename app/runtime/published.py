"""Weights trained by others: arcface_torch's and those of its CatFace fork, whose names the networks here keep.

Two things differ. Weights saved through DistributedDataParallel have `module.` before every name. And the fork's
Fourier layer shifts its spectra along all axes, the colours among them, so that plane c of its gain acts on colour
(c - 1) mod 3; here plane c acts on colour c.

A Fourier gain of the fork is told from one of ours by what lies beside it: our files hold the layer's `squares`, the
fork computes its mask anew in every step and stores nothing of it.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

DATA_PARALLEL = "module."
GAIN = "fourier_transform_layer.learnable_param"
SQUARES = "fourier_transform_layer.squares"


def translate(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, new_fourier: bool = False
) -> dict[str, Tensor]:
    """The tensors of a backbone's file under the names of `wanted`, its state_dict here.

    What is already as it is here stays so. With `new_fourier` a Fourier layer that the file has none of is that of
    `wanted`: before it is trained it sharpens a little. What does not fit is passed on, for the caller to name it.
    """
    if all(name.startswith(DATA_PARALLEL) for name in state):
        state = {name.removeprefix(DATA_PARALLEL): tensor for name, tensor in state.items()}
    translated = dict(state)
    if GAIN in state and SQUARES not in state:
        translated[GAIN] = state[GAIN].roll(-1, 0)  # plane 1 is the first colour's
        translated |= {name: wanted[name] for name in [SQUARES] if name in wanted}
    if new_fourier and GAIN not in state:
        translated |= {name: wanted[name] for name in (GAIN, SQUARES) if name in wanted}
    return translated


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a backbone here as the published code's `load_state_dict` takes them; undoes `translate`."""
    published = {name: tensor.detach().cpu().clone() for name, tensor in state.items() if name != SQUARES}
    if SQUARES in state:
        published[GAIN] = published[GAIN].roll(1, 0)
    return published
