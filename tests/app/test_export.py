"""python -m app.export: the file gives the network's embeddings, uses operators of old runtimes and keeps the rules."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from app import export
from app.config import BackboneConfig, load
from app.data.augment import to_float
from app.errors import Failed, WrongUse
from app.models import build_backbone
from app.models.fourier import FourierLayer
from app.onnx import compare, make, rules
from app.runtime import checkpoint, published
from app.runtime.dist import World
from app.runtime.weights import load_backbone
from tests.app.conftest import faces
from tests.app.support.training import run

IRESNET = BackboneConfig("iresnet", [1, 1], width=8, embedding_dim=24)
WEIGHTS_OF_IRESNET = ["backbone=iresnet18", "backbone.layers=[1,1]", "backbone.width=8", "backbone.embedding_dim=24"]
NETWORKS = {
    "iresnet": IRESNET,
    "iresnet, 64 pixels": BackboneConfig("iresnet", [1, 2], width=8, embedding_dim=24, image_size=64),
    "iresnet, 120 pixels": BackboneConfig("iresnet", [1], width=8, embedding_dim=24, image_size=120),
    "iresnet, deeper": BackboneConfig("iresnet", [1, 1, 1, 1], width=8, embedding_dim=24, image_size=50),
    "mobilefacenet": BackboneConfig("mobilefacenet", [1, 1, 1, 1], width=64, embedding_dim=24, image_size=48),
    "vit": BackboneConfig("vit", [2], width=32, embedding_dim=24, image_size=36, mask_ratio=0.5, drop_path=0.5),
    "vit, fourier": BackboneConfig("vit", [1], width=16, embedding_dim=24, patch_size=28, fourier="vit"),
    "iresnet, fourier": BackboneConfig("iresnet", [1], width=8, embedding_dim=24, image_size=37, fourier="iresnet"),
}
OPSETS_AND_FORMS = [
    *((name, 11, True) for name in NETWORKS),
    ("iresnet", 11, False),
    ("vit, fourier", 11, False),
    ("iresnet", 20, True),
    ("vit", 14, True),
    ("vit", 17, False),
    ("vit", 20, True),
]
# Operators of convolutional networks, which every runtime has.
PLAIN = {"Sub", "Mul", "MatMul", "Conv", "PRelu", "BatchNormalization", "Add", "Flatten", "Cast", "Gemm"}
# Further operators that attention needs at opset 11.
SHAPES = {"Constant", "Shape", "Gather", "Slice", "Concat", "Unsqueeze", "Squeeze", "Split", "Reshape", "Transpose"}
ARITHMETIC = {"ReduceMean", "Pow", "Sqrt", "Div", "Softmax", "Clip"}


def settled(network: nn.Module, image_size: int = 112, pictures: int = 12) -> nn.Module:
    """Set BN's averages from images, as after training; without this, numbers grow layer by layer."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = None  # selects the plain average
    with torch.no_grad():
        network.train()(to_float(torch.from_numpy(faces(pictures, 1, seed=1)), image_size))
    return network.eval()


def network(config: BackboneConfig) -> nn.Module:
    torch.manual_seed(0)
    net = build_backbone(config)
    for module in net.modules():
        if isinstance(module, FourierLayer):
            nn.init.normal_(module.learnable_param, 1, 0.3)
    return settled(net, config.image_size)


def save_weights(folder: Path) -> Path:
    """Save the weights of the network IRESNET; returns the file."""
    path = folder / "backbone.pt"
    torch.save(network(IRESNET).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(path, faces(5, 1, seed=2))
    return path


@pytest.fixture(scope="module")
def exported(weights: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "model.onnx"
    assert export.main([f"weights={weights}", *WEIGHTS_OF_IRESNET, f"out={out}", f"check_images={images}"]) == 0
    return out


class Fraction(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.frac(x)


# Making the file


@pytest.mark.parametrize(("name", "opset", "inside"), OPSETS_AND_FORMS)
def test_the_file_says_what_the_network_says_for_any_number_of_images(name: str, opset: int, inside: bool) -> None:
    config = NETWORKS[name]
    net, pictures = network(config), faces(5, 1, seed=2)
    model = make.to_onnx(net, image_size=config.image_size, opset=opset, inside=inside)
    wanted = net(to_float(torch.from_numpy(pictures), config.image_size)).detach().numpy()
    pixels = pictures.transpose(0, 3, 1, 2).astype(np.float32)
    session = onnxruntime.InferenceSession(model)
    for count in (1, 3, 5):
        x = pixels[:count] if inside else pixels[:count] / 127.5 - 1
        (found,) = session.run(["embedding"], {"input": x})
        assert np.abs(found - wanted[:count]).max() < 1e-4
    graph = onnx.load_from_string(model)
    assert graph.opset_import[0].version == opset
    # Later nodes, such as a norm's subtraction, do not mislead the server's detection of the normalisation.
    assert rules.normalisation(graph) == ((0.0, 1.0) if inside else (127.5, 127.5))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_file_is_plain(name: str) -> None:
    """Known operators, no redundant node, fp32, slopes of shape [C, 1, 1] (some runtimes refuse other shapes)."""
    config = NETWORKS[name]
    net = network(config).to(memory_format=torch.channels_last)  # as in training; our own gradients leave no trace
    graph = onnx.load_from_string(make.to_onnx(net, image_size=config.image_size, opset=11, inside=True)).graph
    operators = Counter(node.op_type for node in graph.node)
    assert set(operators) <= (PLAIN | SHAPES | ARITHMETIC if config.name == "vit" else PLAIN)
    assert operators["Conv"] == sum(isinstance(module, nn.Conv2d) for module in net.modules())
    assert operators["PRelu"] == sum(isinstance(module, nn.PReLU) for module in net.modules())
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    assert all(tensor.data_type == TensorProto.FLOAT for tensor in tensors.values() if tensor.dims)
    for node in graph.node:
        if node.op_type == "PRelu":
            channels, *ones = tensors[node.input[1]].dims
            assert channels > 1
            assert ones == [1, 1]
    first, second, *others = [node.name for node in graph.node]
    assert (first, second) == ("Sub_pixels", "Mul_pixels")
    assert not any(name.startswith(("Sub", "Mul")) for name in others)


def test_making_a_file_leaves_the_network_as_it_was_and_is_repeatable() -> None:
    net = network(IRESNET)
    net.train()
    before = checkpoint.weights_digest(net)
    files = [make.to_onnx(net, image_size=112, opset=11, inside=True) for _ in range(2)]
    assert files[0] == files[1]
    assert net.training
    assert checkpoint.weights_digest(net) == before


def test_a_whole_published_network() -> None:
    torch.manual_seed(0)
    net = settled(build_backbone(load(["backbone=mobilefacenet"]).backbone))
    model = make.to_onnx(net, image_size=112, opset=11, inside=True)
    found = compare.compare(model, net, faces(2, 1, seed=2), image_size=112, inside=True)
    assert found.good
    assert len(model) == pytest.approx(4 * 2_059_520, rel=0.01)  # 4 bytes a parameter, and the graph


def test_a_network_too_large_for_one_file_is_refused() -> None:
    with torch.device("meta"):
        large = nn.Linear(2**16, 2**14)
    with pytest.raises(WrongUse, match="2 GiB"):
        make.to_onnx(large, image_size=112, opset=11, inside=True)


@given(size=st.integers(16, 200))
@settings(max_examples=25)
def test_resampling_by_matrices_is_the_feeds(size: int) -> None:
    pictures = torch.from_numpy(faces(2, 1, seed=size))
    wanted = to_float(pictures, size)
    rows = make.resampling(112, size)
    assert torch.allclose(rows @ to_float(pictures, 112) @ rows.T, wanted, atol=1e-5)


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 7), st.integers(1, 9)),
    scale=st.none() | st.floats(0.01, 2.0),
)
@settings(max_examples=25)
def test_attention_in_plain_words_is_torchs(shape: tuple[int, int, int, int], scale: float | None) -> None:
    generator = torch.Generator().manual_seed(sum(shape))
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    assert torch.allclose(make.attention(q, k, v, scale=scale), F.scaled_dot_product_attention(q, k, v, scale=scale))


class Attending(nn.Module):
    """Attention between the rows of an image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, x, x, scale=0.1).mean((2, 3))


def test_attention_is_written_at_an_opset_whose_exporter_has_none() -> None:
    model = make.to_onnx(Attending(), image_size=112, opset=11, inside=True)
    assert "Softmax" in {node.op_type for node in onnx.load_from_string(model).graph.node}
    assert compare.compare(model, Attending(), faces(3, 1), image_size=112, inside=True).good


class Masked(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, x, x, is_causal=True).mean((2, 3))


def test_attention_with_a_mask_is_refused_rather_than_left_out() -> None:
    with pytest.raises(TypeError, match="is_causal"):
        make.to_onnx(Masked(), image_size=112, opset=11, inside=True)


# Comparing


@given(seed=st.integers(0, 10**6), rows=st.integers(1, 4), columns=st.integers(1, 5), off=st.floats(0, 0.1))
def test_how_far_apart_by_hand(seed: int, rows: int, columns: int, off: float) -> None:
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(rows, columns)) + 3
    b = a + off * rng.normal(size=a.shape)
    difference, cosine = compare.apart(b, a)
    pairs = [(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)]
    assert difference == pytest.approx(max(abs(x - y) for x, y in pairs))
    by_hand = [
        sum(x * y for x, y in zip(p, q, strict=True)) / (sum(x * x for x in p) * sum(y * y for y in q)) ** 0.5
        for p, q in zip(a.tolist(), b.tolist(), strict=True)
    ]
    assert cosine == pytest.approx(min(by_hand))


@pytest.mark.parametrize("broken", [np.nan, np.inf, 0.0])
def test_numbers_that_are_none_agree_with_nothing(broken: float) -> None:
    wanted = np.ones((2, 3))
    found = wanted.copy()
    found[1] = broken
    for a, b in ((found, wanted), (wanted, found), (found, found)):
        assert not compare.Agreement(2, *compare.apart(a, b)).good


def test_large_embeddings_may_differ_by_their_share() -> None:
    """A random iresnet18 has embeddings of norm 7,000, where fp32 rounds by more than 1e-4."""
    wanted = 7000 * np.random.default_rng(0).normal(size=(3, 8)) / 8**0.5
    for share, good in ((5e-7, True), (1e-3, False)):
        found = wanted * (1 + share)
        apart = compare.apart(found, wanted)
        assert compare.Agreement(3, *apart, float(np.abs(wanted).max())).good == good
        assert not compare.Agreement(3, *apart).good


# The command


@pytest.mark.parametrize("recipe", ["self_supervised", "supervised"])
def test_a_checkpoint_of_a_run_is_exported_and_described(
    recipe: str, small_data: Path, tmp_path: Path, alone: World, capsys: pytest.CaptureFixture[str]
) -> None:
    run(small_data, tmp_path, alone, f"recipe={recipe}", "train.epochs=1")
    path = tmp_path / "checkpoints" / "epoch_000.pt"
    out = tmp_path / "export" / "model.onnx"
    assert export.main([f"checkpoint={path}", f"out={out}"]) == 0
    said = capsys.readouterr().out
    assert str(small_data) in said  # compared on the run's own images
    told = json.loads(out.with_suffix(".json").read_text())
    assert told["sha256"] == checkpoint.sha256(out)
    assert told["checkpoint"] == {"file": "epoch_000.pt", "sha256": checkpoint.sha256(path)}
    assert told["agreement"]["images"] == 32
    assert told["agreement"]["max_abs_difference"] <= 1e-4
    assert told["agreement"]["least_cosine"] >= 0.9999
    assert sorted(file.name for file in out.parent.iterdir()) == ["model.json", "model.onnx"]
    session = onnxruntime.InferenceSession(out)
    assert [told["input"]["name"]] == [value.name for value in session.get_inputs()]
    assert session.get_outputs()[0].shape == told["output"]["shape"]


def test_plain_weights_replace_no_checkpoint(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").touch()
    one, other = (Path(shutil.copy(weights, checkpoints / f"epoch_00{number}.pt")) for number in (0, 1))
    before = one.read_bytes()
    for out, said in (
        (checkpoints / ".." / "checkpoints" / one.name, "is a file that this command reads"),
        (other, "is a checkpoint of a run"),
        (checkpoints / ".." / "checkpoints" / other.name, "is a checkpoint of a run"),
    ):
        assert export.main([f"weights={one}", f"out={out}", *WEIGHTS_OF_IRESNET]) == 2
        assert said in capsys.readouterr().err
        assert one.read_bytes() == other.read_bytes() == before


def test_what_an_evaluation_measured_lies_beside_the_file(
    weights: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_lfw = {"accuracy": 0.9, "thresholds": {"ten_folds": {"cosine": 0.31, "squared_distance": 1.38}}}
    rows = [{"sha256": checkpoint.sha256(weights), "sets": {"lfw": of_lfw}}]
    (tmp_path / "eval.json").write_text(json.dumps({"weights": rows}))
    given = [f"weights={weights}", *WEIGHTS_OF_IRESNET, f"out={tmp_path}/m.onnx", f"check_images={images}"]
    assert export.main([*given, f"evaluation={tmp_path}/eval.json"]) == 0
    assert json.loads((tmp_path / "m.json").read_text())["evaluation"] == {"lfw": of_lfw}
    for content, words in (
        (json.dumps({"weights": []}), "has no results for backbone.pt"),
        ("[]", "is not an eval.json"),
    ):
        (tmp_path / "eval.json").write_text(content)
        assert export.main([*given, f"evaluation={tmp_path}/eval.json"]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (torch.nn.AdaptiveAvgPool2d(3), "ONNX export of operator adaptive_avg_pool2d, output size that are not factor"),
        (Fraction(), "'aten::frac' to ONNX opset version 11 is not supported"),
    ],
)
def test_a_layer_that_onnx_lacks_is_one_sentence(
    layer: torch.nn.Module, why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Failed, match=r"^torch cannot write this network as ONNX: ") as error:
        make.to_onnx(torch.nn.Sequential(layer, torch.nn.Flatten()), image_size=112, opset=11, inside=True)
    assert why in str(error.value)
    assert "Please" not in str(error.value)
    assert str(error.value).endswith("; use another layer there, or another opset, such as opset=17")
    assert capfd.readouterr().out == ""


def test_the_program_of_the_tutorial_runs(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten lines of onnxruntime, of docs/tutorial.md, beside a file that `export` wrote."""
    program = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text("utf-8").split("```python\n")[1]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "photos").mkdir(parents=True)
    np.save("data/photos/images.npy", np.repeat(faces(3, 1, seed=2), 2, axis=0))
    shutil.copy(exported, "model.onnx")
    told = json.loads(exported.with_suffix(".json").read_text())
    measured = {"photos-held-out": {"thresholds": {"far_1e-3": {"cosine": 0.5}}}}
    Path("model.json").write_text(json.dumps({**told, "evaluation": measured}))
    exec(program.partition("```")[0], {})  # noqa: S102 - of our own page
    assert capsys.readouterr().out == "cosine 1.000, one person from 0.500 on\n"


@pytest.mark.parametrize(("fourier", "suffix"), [("none", "pt"), ("none", "pth"), ("iresnet", "pt"), ("vit", "pt")])
def test_weights_go_back_to_the_published_code(fourier: str, suffix: str, tmp_path: Path) -> None:
    """Loading the exported file gives the same weights, and its gain has the fork's order of colours."""
    config = replace(IRESNET, fourier=fourier)
    net = network(config)
    if fourier != "none":
        gain = net.fourier_transform_layer.learnable_param
        torch.nn.init.normal_(gain, 1, 0.3)
    torch.save(net.state_dict(), tmp_path / "ours.pt")
    words = [*WEIGHTS_OF_IRESNET, f"backbone.fourier={fourier}"]
    assert export.main([f"weights={tmp_path}/ours.pt", *words, f"out={tmp_path}/theirs.{suffix}"]) == 0
    theirs = torch.load(tmp_path / f"theirs.{suffix}", weights_only=True)
    assert published.SQUARES not in theirs
    if fourier != "none":
        assert torch.equal(theirs[published.GAIN][0], gain[2])  # the fork's plane c acts on colour (c - 1) mod 3
    back = build_backbone(config)
    load_backbone(tmp_path / f"theirs.{suffix}", back)
    assert all(torch.equal(value, back.state_dict()[name]) for name, value in net.state_dict().items())
    assert export.main([f"weights={tmp_path}/ours.pt", *words, f"out={tmp_path}/ours.pt"]) == 2
    assert export.main([f"weights={tmp_path}/ours.pt", *words, f"out={tmp_path}/x.pt", "opset=11"]) == 2


def test_bare_weights_are_exported_and_keep_every_rule(exported: Path) -> None:
    told = json.loads(exported.with_suffix(".json").read_text())
    assert set(told["rules"]) == {"input", "output", "size", "weights", "nodes", "opset", "runs"}
    assert all(told["rules"].values())
    assert told["normalisation"] == {"mean": 0.0, "std": 1.0}
    assert told["backbone"]["layers"] == [1, 1]
    assert (told["opset"], told["bytes"]) == (11, exported.stat().st_size)


def test_the_json_tells_a_reader_how_to_get_the_networks_embeddings(
    weights: Path, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "outside.onnx"
    words = [f"weights={weights}", *WEIGHTS_OF_IRESNET, f"out={out}", f"check_images={images}", "normalise=outside"]
    assert export.main(words) == 0
    told = json.loads(out.with_suffix(".json").read_text())
    pictures = np.load(images)
    mean, std = told["normalisation"]["mean"], told["normalisation"]["std"]
    x = ((pictures.transpose(0, 3, 1, 2) - mean) / std).astype(np.float32)
    (found,) = onnxruntime.InferenceSession(out).run([told["output"]["name"]], {told["input"]["name"]: x})
    wanted = network(IRESNET)(to_float(torch.from_numpy(pictures), 112)).detach().numpy()
    assert np.abs(found - wanted).max() < 1e-4
    assert rules.normalisation(onnx.load(out)) == (mean, std)  # the server would normalise the same way


def test_without_images_of_its_own_it_compares_on_the_orl_photographs(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"weights={weights}", *WEIGHTS_OF_IRESNET, "data.binary_cache_path=/nowhere.npy"]
    assert export.main([*words, f"out={tmp_path / 'model.onnx'}"]) == 0
    assert "32 images of orl" in capsys.readouterr().out


def test_a_file_that_differs_is_not_written(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Embeddings that are only what rounding leaves of large sums, in another order each; no folder is made."""
    net = network(IRESNET)
    net.bn2.weight.data.zero_()
    net.bn2.bias.data.fill_(1)  # so that `fc` sums its weights
    net.fc.weight.data.normal_().mul_(1e6)
    net.fc.bias.data = -net.fc.weight.data.double().sum(1).float()
    torch.save(net.state_dict(), tmp_path / "rounded.pt")
    out = tmp_path / "export" / "model.onnx"
    words = [f"weights={tmp_path / 'rounded.pt'}", *WEIGHTS_OF_IRESNET, f"out={out}", f"check_images={images}"]
    assert export.main(words) == 1
    said = capsys.readouterr().err
    assert "was not written" in said
    assert said.count("\n") == 1
    assert not out.parent.exists()


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ([], "checkpoint=runs/RUN/checkpoints"),
        (["checkpoint=/nowhere.pt", "out=model.onnx"], "no file /nowhere.pt"),
        (["checkpoint", "out=model.onnx"], "checkpoint is not of the form key=value"),
        (["checkpoint={weights}", "opst=11"], "did you mean opset?"),
        (["checkpoint={weights}", "out=model.onnx"], "config.yaml is missing"),
        (["checkpoint={weights}", "weights={weights}", "out=model.onnx"], "export needs checkpoint="),
        (["weights={weights}", "out=model.onnx"], "backbone=iresnet50"),
        (["weights={weights}", "backbone=iresnet18"], "out=model.onnx"),
        (["weights={weights}", "backbone=iresnet18", "out=model.safetensors"], "out=model.onnx"),
        (["weights={weights}", "backbone=iresnet18", "out={images}/m.onnx", "opset=10"], "opset=11"),
        (["weights={weights}", "backbone=iresnet18", "out=/tmp/m.onnx", "opset=eleven"], "opset=11"),
        (["weights={weights}", "backbone=iresnet18", "out=/tmp/m.onnx", "normalise=yes"], "normalise=inside"),
        (["weights={weights}", "backbone=iresnet18", "out=/tmp/m.onnx", "check_images=/no.npy"], "no file /no.npy"),
        (["weights={weights}", "backbone=mobilefacenet", "out=/tmp/m.onnx"], "does not fit this configuration"),
        (["weights={weights}", "backbone=iresnet81", "out=/tmp/m.onnx"], "iresnet18"),
        (["weights={images}", "backbone=mobilefacenet", "out=/tmp/m.onnx"], "is an array of NumPy"),
        (["check=/nowhere.onnx"], "no file /nowhere.onnx"),
        (["check={images}"], "not a valid ONNX file"),
        (["check={images}", "opset=11"], "leave the other words out"),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_code_2(
    words: list[str], answer: str, weights: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export.main([word.format(weights=weights, images=images) for word in words]) == 2
    said = capsys.readouterr()
    assert answer in said.err
    assert said.err.count("\n") == 1
    assert not said.out


def test_a_description_of_something_else_is_not_overwritten(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint also has a .json beside it, which export must not replace."""
    beside = tmp_path / "epoch_014.json"
    for content in ('{"file": "epoch_014.pt"}', '["model.onnx"]', "not JSON"):
        beside.write_text(content)
        words = [f"weights={weights}", *WEIGHTS_OF_IRESNET, f"out={beside.with_suffix('.onnx')}"]
        assert export.main(words) == 2
        assert str(beside) in capsys.readouterr().err
        assert beside.read_text() == content


def test_help_names_the_words_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert export.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"{word}=" in said for word in export.OWN_WORDS)


# The challenge's rules


def test_a_kept_rule_is_a_line_and_exit_code_0(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export.main([f"check={exported}"]) == 0
    *told, last = capsys.readouterr().out.splitlines()
    assert [line[:4] for line in told] == ["pass"] * 7 + ["    "] * 2
    assert "all rules pass" in last
    assert "given pixels from 0 to 255" in told[-1]


def valid(**changes: Any) -> onnx.ModelProto:
    """A small model that keeps every rule, except for those that `changes` break."""
    asked: dict[str, Any] = {
        "inputs": {"input": ["N", 3, 112, 112]},
        "outputs": {"embedding": ["N", 3]},
        "weight": np.ones((3,), np.float32),
        "more_nodes": 7,
        "opset": 11,
        "ir": 6,
        "kind": TensorProto.FLOAT,
        **changes,
    }
    chain = [f"x{i}" for i in range(asked["more_nodes"])]
    nodes = [helper.make_node("ReduceMean", ["input"], ["mean"], axes=[2, 3], keepdims=0)]
    nodes += [
        helper.make_node("Relu", [before], [after]) for before, after in zip(["mean", *chain], chain, strict=False)
    ]
    cast = asked["weight"].dtype != np.float32
    if cast:
        nodes += [helper.make_node("Cast", ["w"], ["w32"], to=TensorProto.FLOAT)]
    nodes += [helper.make_node("Add", [chain[-1] if chain else "mean", "w32" if cast else "w"], ["embedding"])]
    nodes += [helper.make_node("Neg", ["embedding"], [name]) for name in list(asked["outputs"])[1:]]

    def values(shapes: dict[str, list[Any]], kind: int) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()]

    graph = helper.make_graph(
        nodes,
        "graph",
        values(asked["inputs"], asked["kind"]),
        values(asked["outputs"], TensorProto.FLOAT),
        [numpy_helper.from_array(asked["weight"], "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", asked["opset"])], ir_version=asked["ir"])


def verdicts(model: onnx.ModelProto, folder: Path) -> dict[str, bool | None]:
    path = folder / "judged.onnx"
    onnx.save(model, path)
    return {verdict.rule: verdict.passed for verdict in rules.judge(path)}


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({}, set()),
        ({"inputs": {"input": ["N", 3, 112, 96]}}, {"input", "runs"}),
        ({"inputs": {"input": [1, 3, 112, 112]}}, {"input", "runs"}),
        ({"inputs": {"input": ["N", 3, 112, 112], "more": ["N", 1]}}, {"input", "runs"}),
        ({"kind": TensorProto.FLOAT16, "weight": np.ones(3, np.float16)}, {"input", "weights", "runs"}),
        ({"outputs": {"embedding": ["N", 3], "another": ["N", 3]}}, {"output"}),
        ({"outputs": {"embedding": ["N", 1025]}, "weight": np.ones((1, 1025), np.float32)}, {"output", "runs"}),
        ({"weight": np.ones(3, np.float16)}, {"weights"}),
        ({"weight": np.ones(3, np.float64)}, {"weights"}),
        ({"weight": np.ones(3, np.int64)}, set()),
        ({"weight": np.full(3, np.nan, np.float32)}, {"runs"}),
        ({"weight": np.full(3, np.inf, np.float32)}, {"runs"}),
        ({"more_nodes": 5}, {"nodes"}),
        ({"more_nodes": 6}, set()),
        ({"opset": 14}, set()),
        ({"opset": 15}, {"opset"}),
        ({"ir": 8}, {"opset"}),
    ],
)
def test_each_rule_is_broken_by_what_it_forbids(changes: dict[str, Any], broken: set[str], tmp_path: Path) -> None:
    found = verdicts(valid(**changes), tmp_path)
    assert {rule for rule, passed in found.items() if passed is False} == broken


@pytest.mark.parametrize(("dim", "passed", "words"), [(512, True, ""), (513, True, "unconstrained track only")])
def test_an_embedding_over_512_is_for_one_track_only(dim: int, passed: bool, words: str) -> None:
    model = valid(outputs={"embedding": ["N", dim]})
    verdict = rules.output(model)
    assert verdict.passed is passed
    assert words in verdict.found


def test_a_weight_outside_the_file_breaks_a_rule(tmp_path: Path) -> None:
    onnx.save(valid(), tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    found = {verdict.rule: verdict for verdict in rules.judge(tmp_path / "m.onnx")}
    assert found["weights"].passed is False
    assert "outside the file" in found["weights"].found


def test_too_large_a_file_breaks_a_rule(tmp_path: Path) -> None:
    for size_bytes, passed in ((2**30, True), (2**30 + 1, False), (2**31, False)):
        path = tmp_path / f"{size_bytes}.onnx"
        with path.open("wb") as file:
            file.truncate(size_bytes)  # a sparse file takes no disk space
        assert rules.size(path).passed is passed
    assert [verdict.passed for verdict in rules.judge(path)] == [False]  # above the limit of a protobuf message


@given(
    named=st.lists(
        st.sampled_from(["Sub_0", "Mul_1", "_minusscalar0", "_mulscalar0", "/Sub", "Conv_2", ""]), max_size=12
    )
)
def test_normalisation_is_found_by_the_names_of_the_first_eight_nodes(named: list[str]) -> None:
    model = valid()
    del model.graph.node[:]
    model.graph.node.extend(helper.make_node("Relu", ["a"], ["b"], name=name) for name in named)
    first = named[:8]
    inside = bool({"Sub_0", "_minusscalar0"} & {*first}) and bool({"Mul_1", "_mulscalar0"} & {*first})
    assert rules.normalisation(model) == ((0.0, 1.0) if inside else (127.5, 127.5))


@given(junk=st.binary(max_size=200), cut=st.floats(0, 0.99))
@settings(max_examples=40)
def test_what_is_no_onnx_file_is_refused(junk: bytes, cut: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "junk.onnx"
    whole = valid().SerializeToString()
    for content in (junk, whole[: int(cut * len(whole))], whole[: len(whole) // 2] + junk):
        path.write_bytes(content)
        with pytest.raises(WrongUse, match="not a valid ONNX file") as refused:
            rules.judge(path)
        assert "\n" not in str(refused.value)


def test_normalising_under_names_that_the_server_overlooks_is_told(tmp_path: Path) -> None:
    """For example the names that torch gives to nodes by default."""
    model = onnx.load_from_string(make.to_onnx(network(IRESNET), image_size=112, opset=11, inside=True))
    assert rules.overlooked(model) == ""
    for node in model.graph.node:
        node.name = f"/{node.op_type}"
    onnx.save(model, tmp_path / "m.onnx")
    told = str(rules.judge(tmp_path / "m.onnx")[-1])
    assert "127.5" in told
    assert "under other names" in told
