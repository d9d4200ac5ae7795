"""Run experiments on a CPU as on a GPU: with their own depth, precision, head and recipe, on 32-pixel faces.

benchmarks/gpu/small.py lists the experiments: the project's own, and published ones for each kind of training. Only
what costs time is reduced, not what decides whether training works: image size, batch, number of epochs, and the width
of some networks (cases.py), which overflow narrow too if BN's averages are not measured first. Products of 16-bit
numbers are rounded as a GPU rounds them (tensor_cores.py). Each experiment trains, mines if its recipe does, saves a
checkpoint and resumes from it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from app import train
from benchmarks.gpu.small import EXPERIMENTS
from tests.app.config.published import NETWORKS, PUBLISHED, Published, configured
from tests.app.shadow.cases import SHALLOW, Case, assert_finite, cases, check_resumed, check_steps, tensors
from tests.app.shadow.tensor_cores import TensorCores, cores_of
from tests.app.support.training import PROJECT, events


def test_every_kind_of_training_that_is_published_is_among_them() -> None:
    def kinds(row: Published) -> set[tuple[str, object]]:
        family = NETWORKS[row.network][0]
        return {
            ("network", family),
            ("margins", row.margins),
            ("optimizer", row.optimizer),
            ("samples", row.sample_rate < 1),
            ("accumulates", row.accumulate > 1),
        }

    tried = set().union(*(kinds(PUBLISHED[name]) for name in EXPERIMENTS if name in PUBLISHED))
    assert {kind for row in PUBLISHED.values() for kind in kinds(row)} == tried
    own = {path.stem for path in (PROJECT / "conf" / "experiment").glob("*.yaml")} - PUBLISHED.keys()
    assert own - {"tryout_distill"} <= set(EXPERIMENTS)  # needs a teacher: tests/app/recipes/test_distill.py


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_tables_say_what_an_experiment_is(experiment: str) -> None:
    config = configured(experiment)
    assert config.train.precision == "auto"
    assert (sum(config.backbone.layers) <= 8) == (experiment in SHALLOW)


@pytest.mark.parametrize("case", cases(ranks=1, slow=pytest.mark.slow))
def test_an_experiment_trains_in_its_own_precision(case: Case, data: Path, tmp_path: Path) -> None:
    def run(epochs: int) -> None:
        with cores_of(case.precision):
            assert train.main(case.words(data, tmp_path / "run", epochs)) == 0

    run(epochs=1)
    first = check_steps(case, tmp_path / "run", epoch=0)
    run(epochs=2)
    check_resumed(case, tmp_path / "run", first)


def test_the_recipe_of_the_project_takes_its_first_steps(data: Path, tmp_path: Path) -> None:
    """IResNet50 with MoCo in fp16, in seconds: deep networks overflow if BN's averages are not measured first."""
    case = Case("sniperface", "fp16", ("train.batch.grad_accum_steps=1", "data.data_fraction=0.17"))
    with TensorCores():
        assert train.main(case.words(data, tmp_path / "run", epochs=1)) == 0
    steps = [event["loss"] for event in events(tmp_path / "run") if event["event"] == "step"]
    assert [loss for loss in steps if loss is not None], "every step was skipped"
    assert_finite(tensors(tmp_path / "run", epoch=0))
