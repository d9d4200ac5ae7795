"""Relative paths in --set become absolute, in every way that Hydra lets a user write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.specs.files import absolute, named

FOLDER = Path("/home/it's me")
QUOTED = r"/home/it\'s me"


@pytest.mark.parametrize(
    ("typed", "paths", "expected"),
    [
        ("train.eval.sets=data/pairs", ["data/pairs"], f"train.eval.sets=['{QUOTED}/data/pairs']"),
        ("train.eval.sets=a.bin,/b.bin", ["a.bin", "/b.bin"], f"train.eval.sets=['{QUOTED}/a.bin','/b.bin']"),
        ("train.eval.sets=[a, 'b c']", ["a", "b c"], f"train.eval.sets=['{QUOTED}/a','{QUOTED}/b c']"),
        ("+train.warm_start=x.pt", ["x.pt"], f"+train.warm_start='{QUOTED}/x.pt'"),
        ("recipe.distill.teacher='a,b.onnx'", ["a,b.onnx"], f"recipe.distill.teacher='{QUOTED}/a,b.onnx'"),
        ("train.warm_start=/x.pt", ["/x.pt"], "train.warm_start=/x.pt"),
        *((same, [], same) for same in (
            "train.epochs=5", "train.eval.sets=", "train.eval.sets=[]", "train.eval.sets=[a,", "train.eval.sets=a,,b",
            "train.warm_start=null", "train.warm_start=a.pt,b.pt", "train.warm_start=[a.pt]", "train.warm_start=${x}",
            "~train.eval.sets",
        )),
    ],
)  # fmt: skip
@pytest.mark.skipif(Path("/").drive != Path("/").absolute().drive, reason="needs POSIX: run it on Linux or macOS")
def test_paths_are_found_and_made_absolute(typed: str, paths: list[str], expected: str) -> None:
    assert named(typed)[1] == paths
    assert absolute([typed], FOLDER) == (expected,)
    assert absolute(absolute([typed], FOLDER), Path("/other")) == (expected,)  # once
