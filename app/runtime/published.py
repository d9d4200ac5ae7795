"""Convert published weights of arcface_torch and its CatFace fork; our networks keep their tensor names.

Two things differ. Weights saved through DistributedDataParallel have the prefix `module.`. And the fork's Fourier layer
shifts its spectra along all axes, including colour, so plane c of its gain acts on colour (c - 1) mod 3; here plane c
acts on colour c.

The layer's `squares` tell our files from the fork's: we store them, while the fork recomputes its mask in each step and
stores nothing of it.
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
    """Convert the tensors of a backbone's file to our form. `wanted` is the state_dict of our backbone.

    Tensors already in our form stay unchanged. With `new_fourier`, a Fourier layer that the file lacks is taken from
    `wanted`; untrained, it sharpens slightly. Tensors that do not fit are passed through, for the caller to name them.
    """
    if all(name.startswith(DATA_PARALLEL) for name in state):
        state = {name.removeprefix(DATA_PARALLEL): tensor for name, tensor in state.items()}
    translated = dict(state)
    if GAIN in state and SQUARES not in state:
        translated[GAIN] = state[GAIN].roll(-1, 0)  # plane 1 acts on colour 0
        translated |= {name: wanted[name] for name in [SQUARES] if name in wanted}
    if new_fourier and GAIN not in state:
        translated |= {name: wanted[name] for name in (GAIN, SQUARES) if name in wanted}
    return translated


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert our backbone's tensors for `load_state_dict` of the published code; the reverse of `translate`."""
    published = {name: tensor.detach().cpu().clone() for name, tensor in state.items() if name != SQUARES}
    if SQUARES in state:
        published[GAIN] = published[GAIN].roll(1, 0)
    return published
