"""app.export precision=…: files in fp16 and int8, with the measured difference to fp32."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto

from app import export, prepare
from app.config import load
from app.data.dataset import open_dataset
from app.onnx import chosen, make, smaller
from app.onnx.network import OnnxNetwork
from app.runtime.checkpoint import sha256
from app.runtime.dist import World
from tests.app.conftest import faces
from tests.app.evaluation.test_sets import write_arrays
from tests.app.support.training import run as run_training
from tests.app.test_export import NETWORKS, WEIGHTS_OF_IRESNET, network, save_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(path, faces(60, 1, seed=2))
    return path


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_arrays(tmp_path_factory.mktemp("sets") / "people", "labels.npy")


def run(weights: Path, images: Path, out: Path, *words: str) -> int:
    return export.main([f"weights={weights}", *WEIGHTS_OF_IRESNET, f"out={out}", f"check_images={images}", *words])


def cosine_to(file: Path, of_fp32: Path) -> float:
    """The mean cosine of two files' embeddings, computed apart from the product."""
    x = faces(60, 1, seed=2).transpose(0, 3, 1, 2).astype(np.float32)
    a, b = (onnxruntime.InferenceSession(each).run(None, {"input": x})[0] for each in (file, of_fp32))
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (a, b)]
    return float((unit[0] * unit[1]).sum(1).mean())


@pytest.mark.parametrize(
    ("precision", "kind", "share"), [("fp16", TensorProto.FLOAT16, 0.75), ("int8", TensorProto.INT8, 0.6)]
)
def test_a_smaller_file_is_written_with_what_it_costs(
    precision: str,
    kind: int,
    share: float,
    weights: Path,
    images: Path,
    people: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, full = tmp_path / f"{precision}.onnx", tmp_path / "fp32.onnx"
    words = [f"precision={precision}", f"sets={people}", "min_cosine=0.9"]
    assert run(weights, images, full) == run(weights, images, out, *words) == 0
    said = capsys.readouterr().out
    told = json.loads(out.with_suffix(".json").read_text())
    assert (told["precision"], told["sha256"], told["bytes"]) == (precision, sha256(out), out.stat().st_size)
    assert out.stat().st_size < share * full.stat().st_size
    graph = onnx.load(out).graph
    assert kind in {tensor.data_type for tensor in graph.initializer}
    ends = [value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)]
    assert ends == [TensorProto.FLOAT, TensorProto.FLOAT]
    assert told["loss"]["images"] == 32
    assert told["loss"]["least_cosine"] <= told["loss"]["mean_cosine"] < 1
    assert cosine_to(out, full) == pytest.approx(told["loss"]["mean_cosine"], abs=0.02 if kind == 3 else 1e-4)
    assert set(told["loss"]["ms_an_image"]) == {"fp32", precision}
    # The accuracy beside the file is what evaluation gives for the two files.
    accuracy = told["sets"]["people"]
    assert abs(accuracy["fp32"] - accuracy[precision]) < 0.05
    assert f"fp32 {accuracy['fp32']:.2%}, {precision} {accuracy[precision]:.2%}" in said
    assert ("calibration" in told) == (precision == "int8")
    assert OnnxNetwork(out).mean == 0.0  # it normalises pixels itself, as fp32 does


def test_calibration_sees_other_images_than_the_comparison() -> None:
    for count in (40, 60, 400, 5000):
        assert not set(chosen.calibration_rows(count)) & set(chosen.evenly(count))
    assert len(chosen.calibration_rows(5000)) == chosen.CALIBRATION_IMAGES
    assert len(chosen.calibration_rows(20)) == 0


def test_a_runs_checkpoint_is_measured_on_its_held_out_people(
    tmp_path: Path, alone: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """int8 is calibrated on images that the run trained on, so the held-out people are new to it."""
    data_of_run = tmp_path / "drawn" / "images.npy"
    drawn = ["source=synthetic", "identities=20", "per_identity=4", "held_out=5", f"out={data_of_run}"]
    assert prepare.main(drawn) == 0
    run_training(data_of_run, tmp_path, alone, "train.epochs=1")
    path = tmp_path / "checkpoints" / "epoch_000.pt"
    assert export.main([f"checkpoint={path}", f"out={tmp_path / 'm.onnx'}", "precision=int8", "min_cosine=0.5"]) == 0
    told = json.loads((tmp_path / "m.json").read_text())
    [(name, figures)] = told["sets"].items()
    assert name == f"{data_of_run.parent.name}-held-out"
    assert f"{name}: balanced 10-fold accuracy fp32 {figures['fp32']:.2%}, int8" in capsys.readouterr().out
    config = load([], base=tmp_path / "config.yaml")
    taken, of = chosen.trained_on(config)
    assert taken is not None
    assert (of, told["calibration"]["images"]) == (str(data_of_run), len(taken))
    data = open_dataset(data_of_run, labels_path=None, fraction=1.0, block_rows=config.data.block_size)
    held_out = {image.tobytes() for image in data.images[data.held_out_rows]}
    assert held_out
    assert not held_out & {image.tobytes() for image in taken}


def test_without_the_data_set_of_the_run_nothing_is_measured(small_data: Path) -> None:
    elsewhere = load([f"data.binary_cache_path={small_data.parent / 'gone' / 'images.npy'}"])
    assert chosen.trained_on(elsewhere) == (None, "")
    assert export.sets_of(None, elsewhere) == []


@pytest.mark.parametrize("name", ["iresnet, 64 pixels", "iresnet, fourier", "vit", "vit, fourier", "mobilefacenet"])
def test_other_networks_keep_their_embeddings(name: str) -> None:
    """With resampling, transforms and attention. Untrained, mobilefacenet's depthwise layers lose most in int8."""
    config = NETWORKS[name]
    model = make.to_onnx(network(config), image_size=config.image_size, opset=smaller.INT8_OPSET, inside=False)
    seen, others = faces(32, 1, seed=3), faces(8, 1, seed=5)
    half = smaller.loss(model, smaller.to_fp16(model), "fp16", others, inside=False)
    assert half.mean_cosine > 0.9999
    quarter = smaller.loss(model, smaller.to_int8(model, seen, inside=False), "int8", others, inside=False)
    assert quarter.mean_cosine > (0.6 if name == "mobilefacenet" else 0.9)


def test_a_file_that_differs_too_much_is_not_written(
    weights: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(weights, images, tmp_path / "m.onnx", "precision=int8", "min_cosine=1") == 1
    said = capsys.readouterr().err
    assert "was not written, as int8 changes the embeddings of 32 images too much" in said
    assert "min_cosine=1 on average is required" in said
    assert list(tmp_path.iterdir()) == []


def test_numbers_beyond_fp16_are_refused(
    weights: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A CPU computes fp16 in fp32, so the numbers between the layers are looked at: here those of the first norm."""
    state = torch.load(weights, weights_only=True)
    state["bn1.weight"] *= 1e5
    torch.save(state, tmp_path / "large.pt")
    (tmp_path / "out").mkdir()
    assert run(tmp_path / "large.pt", images, tmp_path / "out" / "m.onnx", "precision=fp16") == 1
    assert "and fp16 ends at 65,504; give precision=int8" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_the_largest_number_is_that_of_any_layer() -> None:
    class Large(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (torch.nn.functional.avg_pool2d(x, 112).flatten(1) * 0 + 3e5) / 3e5

    model = make.to_onnx(Large(), image_size=112, opset=11, inside=True)
    assert smaller.largest_number(model, faces(2, 1), inside=True) == pytest.approx(3e5)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["precision=int4"], "give fp16 or int8, or leave it out for fp32"),
        (["sets=lfw.bin"], "sets= has no effect on a file in fp32; add precision=int8 or fp16"),
        (["precision=int8", "opset=11"], "give opset=13 or higher"),
        (["precision=int8", "min_cosine=high"], "give a number from 0 to 1, such as min_cosine=0.98"),
        (["precision=fp16", "calibration=x.npy"], "calibration= applies only to precision=int8"),
        (["precision=int8", "calibration=few.npy"], "has 0 images for calibration"),
        (["precision=fp16", "sets=nowhere.bin"], "there is no set nowhere.bin"),
    ],
)
def test_wrong_use_is_one_sentence(
    words: list[str],
    sentence: str,
    weights: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("few.npy", faces(5, 1))
    assert run(weights, images, tmp_path / "m.onnx", *words) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert not (tmp_path / "m.onnx").exists()
