"""Convert published weights of arcface_torch and its CatFace fork; our networks keep their tensor names.

Two things differ. Other trainers put the network inside another one, so that its names have a prefix: `module.` of
DistributedDataParallel, `_orig_mod.` of torch.compile, `model.`, `backbone.` or the like. And the fork's Fourier layer
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
    if prefix := next(iter(prefixes(state, wanted)), ""):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    translated = dict(state)
    if GAIN in state and SQUARES not in state:
        translated[GAIN] = state[GAIN].roll(-1, 0)  # plane 1 acts on colour 0
        translated |= {name: wanted[name] for name in [SQUARES] if name in wanted}
    if new_fourier and GAIN not in state:
        translated |= {name: wanted[name] for name in (GAIN, SQUARES) if name in wanted}
    return translated


def prefixes(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Return the prefixes of names in a file under which most tensors fit `wanted`, by name and shape.

    More than one: the file holds several such networks. [""]: the names fit as they are. []: nothing fits.
    """
    anchors = [name for name, tensor in wanted.items() if tensor.ndim > 1][:3]
    starts = {
        name.removesuffix(anchor)
        for name in state
        for anchor in anchors
        if name == anchor or name.endswith(f".{anchor}")
    }

    def fitting(prefix: str) -> int:
        return sum(
            tensor is not None and tensor.shape == here.shape
            for name, here in wanted.items()
            for tensor in [state.get(prefix + name)]
        )

    counts = {prefix: fitting(prefix) for prefix in sorted(starts, key=lambda prefix: (len(prefix), prefix))}
    most = max(counts.values(), default=0)
    return [prefix for prefix, count in counts.items() if count == most] if most else []


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert our backbone's tensors for `load_state_dict` of the published code; the reverse of `translate`."""
    published = {name: tensor.detach().cpu().clone() for name, tensor in state.items() if name != SQUARES}
    if SQUARES in state:
        published[GAIN] = published[GAIN].roll(1, 0)
    return published
