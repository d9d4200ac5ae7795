"""The deepest networks take their first steps in the precisions that a GPU has; see test_experiments.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from app import train
from tests.app.shadow.cases import UNMEASURED, Case, assert_finite, tensors
from tests.app.shadow.tensor_cores import cores_of


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "precision"), [("iresnet100", "fp16"), ("iresnet200", "fp16"), ("iresnet200", "fp32")]
)
def test_the_deepest_networks_give_finite_keys(backbone: str, precision: str, data: Path, tmp_path: Path) -> None:
    """If BN does not normalise, they overflow even fp32, the deeper one first. The keys are those in the queue."""
    fraction = 0.09 if precision == "fp32" else 0.17  # fp16 first searches its loss scale
    words = (f"backbone={backbone}", "train.batch.grad_accum_steps=1", f"data.data_fraction={fraction}", UNMEASURED)
    # In fp32 the overflow needs the channels of the full width; in fp16 it does not.
    case = Case("sniperface", precision, words, full_width=precision == "fp32")
    with cores_of(precision):
        assert train.main(case.words(data, tmp_path / "run", epochs=1)) == 0
    found = tensors(tmp_path / "run", epoch=0)
    assert_finite(found)
    (keys,) = [tensor for name, tensor in found.items() if name.endswith("queue.keys")]
    assert torch.allclose(keys.norm(dim=1)[:4], torch.ones(4), atol=0.01)  # one batch at least was pushed
