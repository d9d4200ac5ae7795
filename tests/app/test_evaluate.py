"""Verification and identification against slow reference versions, and python -m app.evaluate.

The command gives the same numbers with any number of processes, and one sentence for input that it cannot evaluate.
"""

from __future__ import annotations

import json
import pickle
import resource
import tracemalloc
import warnings
from pathlib import Path
from threading import get_ident, main_thread

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from app import evaluate, export
from app.config import Config, load, save_resolved
from app.data.augment import to_float
from app.evaluation import image_set
from app.evaluation.embedding import embed_all, for_each, own_rows
from app.evaluation.image_set import ImageSet, Streamed, decode
from app.evaluation.protocols import PairList
from app.evaluation.verification import (
    FOLDS,
    all_pairs,
    balanced_accuracy,
    best_threshold,
    enough,
    rank1,
    verification_accuracy,
)
from app.models import build_backbone
from app.onnx.network import OnnxNetwork
from app.runtime.checkpoint import sha256
from app.runtime.dist import World
from app.runtime.stop import Stop
from tests.app.conftest import faces
from tests.app.evaluation.test_sets import FACES, encoded, write_arrays, write_csv
from tests.app.support.ijb import write_ijb
from tests.app.support.ranks import run_ranks

SMALL = ["backbone.layers=[1,1]", "backbone.width=8", "backbone.image_size=32", "backbone.embedding_dim=32"]
LABELS = np.repeat(np.arange(8, dtype=np.int32), 6)


@given(scores=st.lists(st.integers(-6, 6), min_size=2, max_size=25), seed=st.integers(0, 100))
def test_the_best_threshold_is_the_best_of_all_thresholds(scores: list[int], seed: int) -> None:
    score = np.array(scores, np.float32) / 6
    same = np.random.default_rng(seed).random(len(score)) < 0.5
    same[:2] = True, False  # some of each kind
    best = max(balanced_accuracy(score, same, t) for t in [*score, np.inf, -np.inf])
    assert balanced_accuracy(score, same, best_threshold(score, same)) == pytest.approx(best)


def test_every_pair_comes_once_and_every_fold_has_its_share_of_both_kinds() -> None:
    pairs = all_pairs(LABELS)
    assert len({(a, b) for a, b in zip(pairs.left, pairs.right, strict=True)}) == 48 * 47 // 2
    assert np.array_equal(LABELS[pairs.left] == LABELS[pairs.right], pairs.same)
    for kind, total in ((True, 8 * 15), (False, 48 * 47 // 2 - 8 * 15)):
        sizes = np.bincount(pairs.fold[pairs.same == kind])
        assert len(sizes) == FOLDS
        assert abs(sizes - total / FOLDS).max() < 1
    assert np.array_equal(pairs.fold, all_pairs(LABELS).fold)


def test_the_rarer_kind_weighs_as_much_as_the_other() -> None:
    same = np.array([True] * 2 + [False] * 98)
    assert balanced_accuracy(np.zeros(100, np.float32), same, 1.0) == 0.5
    assert balanced_accuracy(np.array([1, 0] + [0] * 98, np.float32), same, 0.5) == 0.75


def test_perfect_and_meaningless_embeddings_score_as_they_should() -> None:
    pairs = all_pairs(LABELS)
    perfect = np.eye(8, dtype=np.float32)[LABELS]
    assert verification_accuracy(perfect, pairs) == (1.0, 0.0)
    noise = np.random.default_rng(0).normal(size=(len(LABELS), 64)).astype(np.float32)
    assert 0.35 < verification_accuracy(noise, pairs)[0] < 0.65
    assert rank1(perfect, LABELS) == 1.0
    assert rank1(noise, LABELS) < 0.4


def test_the_length_of_an_embedding_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    x = (np.eye(8)[LABELS] + 0.8 * rng.normal(size=(48, 8))).astype(np.float32)
    scaled = x * rng.uniform(0.1, 10, (48, 1)).astype(np.float32)
    pairs = all_pairs(LABELS)
    assert verification_accuracy(x, pairs)[0] == pytest.approx(verification_accuracy(scaled, pairs)[0])


def test_the_threshold_of_a_fold_does_not_see_that_fold() -> None:
    pairs = all_pairs(LABELS)
    rng = np.random.default_rng(5)
    x = (np.eye(8)[LABELS] + 0.9 * rng.normal(size=(48, 8))).astype(np.float32)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    score = (unit[pairs.left] * unit[pairs.right]).sum(1)
    tuned_on_test = max(balanced_accuracy(score, pairs.same, t) for t in score)
    assert verification_accuracy(x, pairs)[0] <= tuned_on_test


def test_too_few_people_or_images_are_not_measured() -> None:
    assert enough(LABELS)
    assert not enough(np.zeros(30, np.int32))
    assert not enough(np.arange(30, dtype=np.int32))
    assert not enough(np.array([], np.int32))


def test_pairs_of_long_vectors_take_no_memory_of_their_own() -> None:
    """180,000 pairs of vectors as long as an image would take 27 GB if they were laid out pair by pair."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(75, dtype=np.int32), 8)
    people = rng.normal(size=(75, 64)).astype(np.float32)
    long = np.tile(people[labels] + rng.normal(size=(600, 64)).astype(np.float32), (1, 588))
    accuracy, _ = verification_accuracy(long, all_pairs(labels))
    assert 0.9 < accuracy <= 1.0


def network_of(config: Config, seed: int) -> nn.Module:
    """A network with random statistics in its BN layers, so that a missing one changes the embeddings."""
    torch.manual_seed(seed)
    network = build_backbone(config.backbone)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
    return network


def write_run(folder: Path, data: Path, seed: int, prefix: str = "momentum.encoder.backbone.") -> Path:
    """Write a run folder with the checkpoint of an untrained network."""
    config = load([*SMALL, f"data.binary_cache_path={data}", f"run.dir={folder}"])
    save_resolved(config, folder / "config.yaml")
    (folder / "checkpoints").mkdir()
    state = network_of(config, seed).state_dict()
    path = folder / "checkpoints" / "epoch_000.pt"
    torch.save({"modules": {f"{prefix}{name}": t for name, t in state.items()}}, path)
    return path


def write_pairs(path: Path) -> Path:
    """Write 60 pairs of each kind, of 12 people, in an order in which every tenth of the list has both kinds."""
    images, rng = faces(12, 4), np.random.default_rng(0)
    pairs, same = [], [bool(i % 2) for i in range(120)]
    for is_same in same:
        a = int(rng.integers(48))
        b = a // 4 * 4 + (a + 1) % 4 if is_same else (a + int(rng.integers(4, 44))) % 48
        pairs += [encoded(images[a]), encoded(images[b])]
    path.write_bytes(pickle.dumps((pairs, same)))
    return path


@pytest.fixture(scope="module")
def place(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/ with two runs, and a set of each kind."""
    folder = tmp_path_factory.mktemp("evaluate")
    write_run(folder / "runs" / "one", small_data, 1)
    write_run(folder / "runs" / "two", small_data, 2, prefix="embedder.")
    torch.save([1, 2, 3], folder / "runs" / "other.pt")
    (folder / "runs" / "junk").write_bytes(b"junk")
    write_pairs(folder / "lfw.bin")
    write_csv(folder / "pairs.csv")
    write_arrays(folder / "people", "labels.npy")
    write_ijb(folder / "IJBC", FACES)
    return folder


def words(place: Path, *sets: str) -> list[str]:
    return [
        f"weights={place}/runs/*/checkpoints/*.pt",
        *([f"sets={','.join(str(place / s) for s in sets)}"] if sets else []),
    ]


def test_without_flip_each_image_is_embedded_alone(place: Path, tmp_path: Path) -> None:
    """The bare numbers of the published script. XNorm shows it: the mean length of the embeddings alone."""
    weights = place / "runs" / "one" / "checkpoints" / "epoch_000.pt"
    config = load([], base=place / "runs" / "one" / "config.yaml")
    network = network_of(config, 1).eval()
    x = to_float(torch.from_numpy(np.load(place / "people" / "images.npy")), config.backbone.image_size)
    with torch.no_grad():
        alone, mirrored = network(x), network(x.flip(3))
    expected = {"false": alone.norm(dim=1).mean(), "true": torch.cat([alone, mirrored]).norm(dim=1).mean()}
    for flip, xnorm in expected.items():
        words = [f"weights={weights}", f"sets={place / 'people'}", f"out={tmp_path / flip}", f"flip={flip}"]
        assert evaluate.main(words) == 0
        document = json.loads((tmp_path / flip / "eval.json").read_text())
        assert document["flip"] is (flip == "true")
        assert document["weights"][0]["sets"]["people"]["xnorm"] == pytest.approx(float(xnorm), rel=1e-4)
    assert abs(expected["true"] / expected["false"] - 1) > 1e-3


def test_a_table_a_document_and_pictures_are_left(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main([*words(place, "lfw.bin", "pairs.csv", "people", "IJBC"), f"out={tmp_path}"]) == 0
    document = json.loads((tmp_path / "eval.json").read_text())
    assert set(document["sets"]) == {"lfw", "pairs", "people", "IJBC"}
    assert document["sets"]["lfw"]["sha256"] == sha256(place / "lfw.bin")
    assert document["sets"]["lfw"]["images"] < 2 * document["sets"]["lfw"]["pairs"] == 240  # each once
    best, other = document["weights"]
    assert best["means"]["10-fold accuracy"] >= other["means"]["10-fold accuracy"]
    assert best["sha256"] == sha256(Path(best["file"]))
    assert best["config"]["backbone"]["width"] == 8
    numbers = best["sets"]["lfw"]
    assert 0.5 <= numbers["accuracy"] < numbers["accuracy_tuned_on_test"] <= 1
    assert numbers["xnorm"] > 0
    assert set(numbers) >= {"accuracy_std", "tar_at_far_1e-3", "auc"}
    # Numbers of unlike measures are not averaged.
    assert best["means"] == {
        "10-fold accuracy": pytest.approx((numbers["accuracy"] + best["sets"]["pairs"]["accuracy"]) / 2),
        "balanced 10-fold accuracy": best["sets"]["people"]["accuracy"],
        "TAR at FAR 1e-1": best["sets"]["IJBC"]["tar_at_far_1e-1"],
    }
    assert best["sets"]["IJBC"]["tar_at_far_1e-4"] is None
    assert numbers["tar_at_far_1e-3"] is None
    assert document["sets"]["lfw"]["pairs_of_two_people_needed"] == {"tar_at_far_1e-3": 1112}
    told = capsys.readouterr().out
    heading, first, second, *too_few, of_lfw, of_pairs, of_people, of_ijbc, where = told.splitlines()[-15:-4]
    verdicts = told.splitlines()[-4:]
    assert [line.split(":")[0] for line in verdicts] == ["lfw", "pairs", "people", "IJBC"]
    assert f"judges {numbers['accuracy']:.1%} of the pairs correctly, where guessing judges 50%" in verdicts[0]
    assert all("It is the best of 2, " in line and "untrained" not in line for line in verdicts)
    assert "mean 10-fold accuracy  lfw: 10-fold accuracy (threshold tuned on the test pairs)" in heading
    assert "mean balanced" not in heading
    assert heading.endswith("IJBC: TAR at FAR 1e-1")
    assert [line.split(":")[0] for line in too_few] == ["lfw", "pairs", "IJBC"]
    assert too_few[-1].startswith("IJBC: TAR n/a at FAR 1e-6 (1,000,000), 1e-5 (100,000), 1e-4 (10,000), 1e-3 (1,000)")
    names = ", ".join(f"roc_{name}.png" for name in ("lfw", "pairs", "people", "IJBC"))
    assert where == f"report: {tmp_path / 'eval.json'}; curves beside it: {names}"
    shorts = evaluate.short_names([Path(best["file"]), Path(other["file"])])
    assert [first.split()[0], second.split()[0]] == list(shorts.values())
    assert (
        f"{100 * numbers['accuracy']:.2f} % ± {100 * numbers['accuracy_std']:.2f} "
        f"({100 * numbers['accuracy_tuned_on_test']:.2f} %)" in first
    )
    threshold = numbers["thresholds"]["ten_folds"]
    assert threshold["cosine"] == pytest.approx(1 - threshold["squared_distance"] / 2)
    assert f"cosine {threshold['cosine']:.4f}, squared distance {threshold['squared_distance']:.4f} (mean of" in of_lfw
    assert set(numbers["thresholds"]) == {"ten_folds", "tuned_on_test", "far_1e-1"}
    assert [line.split(":")[0] for line in (of_pairs, of_people, of_ijbc)] == ["pairs", "people", "IJBC"]
    assert "(FAR 1e-1)" in of_lfw
    for name in ("lfw", "pairs", "people", "IJBC"):
        with Image.open(tmp_path / f"roc_{name}.png") as picture:
            assert picture.width > 400


def test_without_sets_the_people_held_out_are_measured(place: Path, tmp_path: Path, small_data: Path) -> None:
    assert evaluate.main([*words(place), f"out={tmp_path}"]) == 0
    document = json.loads((tmp_path / "eval.json").read_text())
    name = f"{small_data.parent.name}-held-out"
    assert document["sets"][name]["images"] == 16
    assert all(0 < row["sets"][name]["accuracy"] <= 1 for row in document["weights"])


@pytest.mark.parametrize("normalise", ["inside", "outside"])
def test_an_onnx_file_measures_as_the_weights_it_was_made_of(
    place: Path, tmp_path: Path, normalise: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """evaluate reads the normalisation from the JSON beside the file or, without it, from the file's first nodes."""
    torch.save(network_of(load(SMALL), 1).state_dict(), tmp_path / "w.pt")
    network = ["backbone=iresnet18", *SMALL]
    made = [f"weights={tmp_path}/w.pt", f"out={tmp_path}/m.onnx", f"normalise={normalise}"]
    assert export.main([*made, *network, f"check_images={place}/people/images.npy"]) == 0
    for number in range(2):
        given = [f"weights={tmp_path}/m.onnx,{tmp_path}/w.pt", f"sets={place}/lfw.bin,{place}/people", *network]
        assert evaluate.main([*given, f"out={tmp_path}/{number}"]) == 0
        rows = json.loads((tmp_path / str(number) / "eval.json").read_text())["weights"]
        first, second = (row["sets"] for row in rows)
        for name in ("lfw", "people"):
            assert first[name]["accuracy"] == pytest.approx(second[name]["accuracy"], abs=1e-6)
            assert first[name]["auc"] == pytest.approx(second[name]["auc"], abs=1e-4)
        (tmp_path / "m.json").unlink(missing_ok=True)
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    assert evaluate.main([f"weights={tmp_path}/junk.onnx", f"sets={place}/lfw.bin"]) == 2
    assert "junk.onnx cannot be run" in capsys.readouterr().err


@pytest.mark.parametrize("batch", ["1", "3", "any, it says"])
def test_an_onnx_file_for_a_fixed_number_of_images_is_measured(batch: str, place: Path, tmp_path: Path) -> None:
    """As torch.onnx.export writes without dynamic axes. "Any" is what arcface_torch notes in such a file."""
    network = ["backbone=vit_t", "backbone.layers=[1]", "backbone.width=32", "backbone.embedding_dim=32"]
    torch.manual_seed(0)
    vit = build_backbone(load(network).backbone).eval()
    torch.save(vit.state_dict(), tmp_path / "w.pt")
    images, file = torch.zeros(int(batch) if batch.isdigit() else 1, 3, 112, 112), tmp_path / "m.onnx"
    with warnings.catch_warnings():  # the exporter warns of itself, and of the constants that it traces
        warnings.simplefilter("ignore")
        torch.onnx.export(vit, (images,), file, input_names=["data"], opset_version=14, dynamo=False)
    if not batch.isdigit():
        model = onnx.load(file)
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "None"
        onnx.save(model, file)
    assert OnnxNetwork(file).at_once == len(images)
    given = [f"weights={tmp_path}/m.onnx,{tmp_path}/w.pt", f"sets={place}/lfw.bin", *network, f"out={tmp_path}/out"]
    assert evaluate.main(given) == 0
    first, second = (row["sets"]["lfw"] for row in json.loads((tmp_path / "out" / "eval.json").read_text())["weights"])
    assert first["accuracy"] == pytest.approx(second["accuracy"], abs=1e-6)
    assert first["xnorm"] == pytest.approx(second["xnorm"], rel=1e-5)


def test_published_weights_need_to_be_told_what_they_are(place: Path, tmp_path: Path) -> None:
    config = load(SMALL)
    state = network_of(config, 1).state_dict()
    torch.save({name: t for name, t in state.items() if "num_batches" not in name}, tmp_path / "published.pt")
    given = [f"weights={tmp_path}/published.pt,{place}/runs/one/checkpoints/*.pt", f"sets={place}/lfw.bin"]
    assert evaluate.main([*given, "backbone=iresnet18", *SMALL, f"out={tmp_path}"]) == 0
    published, own = json.loads((tmp_path / "eval.json").read_text())["weights"]
    assert published["sets"] == own["sets"]
    assert evaluate.main([*given, f"out={tmp_path}"]) == 2


def test_weights_that_diverged_come_last(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = network_of(load(SMALL), 1).state_dict()
    torch.save(state, tmp_path / "good.pt")
    torch.save({**state, "fc.weight": state["fc.weight"] * float("nan")}, tmp_path / "bad.pt")
    given = [f"weights={tmp_path}/*.pt", f"sets={place}/lfw.bin", "backbone=iresnet18", *SMALL, f"out={tmp_path}/out"]
    assert evaluate.main(given) == 1
    rows = json.loads((tmp_path / "out" / "eval.json").read_text())["weights"]
    assert [row["means"]["10-fold accuracy"] is None for row in rows] == [False, True]
    told = capsys.readouterr().out.splitlines()
    assert "not finite" in told[-5]
    assert any("bad.pt holds values that are not finite in fc.weight" in line for line in told)


def test_a_stop_between_two_weights_says_what_is_finished(place: Path, tmp_path: Path, alone: World) -> None:
    stop, out = Stop(), tmp_path / "out"
    request = evaluate.decide([*words(place, "lfw.bin", "people"), f"out={out}"])
    stop.asked.set()
    with pytest.raises(evaluate.Stopped, match="0 of 2 sets"):
        evaluate.evaluate(request, alone, stop)


def test_sets_of_one_name_and_runs_of_one_name_are_told_apart(place: Path, tmp_path: Path) -> None:
    for package in ("ms1mv2", "ms1mv3"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "lfw.bin").write_bytes((place / "lfw.bin").read_bytes())
    request = evaluate.decide([*words(place), f"sets={tmp_path}/*/lfw.bin"])
    assert list(request.sets) == ["ms1mv2-lfw", "ms1mv3-lfw"]
    again = evaluate.with_unlike_names([*request.sets.values(), *request.sets.values()])
    assert len({images.name for images in again}) == 4
    files = [Path(f"{folder}/run/checkpoints/epoch_000.pt") for folder in ("a", "b")]
    assert set(evaluate.short_names(files).values()) == {str(file) for file in files}
    of_one_run = [Path(f"r/checkpoints/epoch_00{number}.pt") for number in (0, 1)]
    assert list(evaluate.short_names(of_one_run).values()) == ["epoch_000", "epoch_001"]
    mixed = [*of_one_run, Path("published.pt")]
    assert list(evaluate.short_names(mixed).values()) == ["r/epoch_000", "r/epoch_001", "published.pt"]


def test_embeddings_are_sums_over_both_views_and_not_normalised(alone: World) -> None:
    config = load(SMALL)
    network = network_of(config, 1).eval()
    images = faces(4, 3)
    both, length = embed_all(network, images, config.backbone, alone, batch_size=5, flip=True)
    x = nn.functional.interpolate(
        torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1, (32, 32), mode="bilinear", antialias=True
    )
    with torch.no_grad():
        plain, mirrored = network(x), network(x.flip(3))
    assert np.allclose(both, (plain + mirrored).numpy(), atol=1e-4)
    assert length == pytest.approx(float((plain.norm(dim=1) + mirrored.norm(dim=1)).mean() / 2), rel=1e-5)
    one = embed_all(network, images, config.backbone, alone, batch_size=5, flip=False)[0]
    assert np.allclose(one, plain.numpy(), atol=1e-4)


def test_embeddings_do_not_depend_on_the_cores_nor_on_what_memory_holds(
    alone: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = faces(5, 5)
    asked: list[int] = []

    def read(row: int) -> np.ndarray:
        asked.append(row)
        return images[row]

    some = ImageSet("some", "", "", len(images), read, PairList(*[np.zeros(0)] * 4))  # type: ignore[arg-type]
    held = decode(some, np.arange(3, 25), alone)
    assert isinstance(held, np.ndarray)
    monkeypatch.setattr(image_set, "HELD_BYTES", 25 * 112 * 112 * 3 - 1)
    streamed = decode(some, np.arange(3, 25), alone)
    assert isinstance(streamed, Streamed)
    assert asked == list(range(3, 25))  # all for `held`; `streamed` has not read any yet
    config = load(SMALL)
    threads, network = torch.get_num_threads(), network_of(config, 1)
    try:
        for cores in (1, 3):
            torch.set_num_threads(cores)
            for kind in (held, streamed):
                embeddings, length = embed_all(network, kind, config.backbone, alone, batch_size=4, flip=True)
                if cores == 1 and kind is held:
                    expected = embeddings, length
                assert np.array_equal(embeddings, expected[0])
                assert length == expected[1]
            assert torch.get_num_threads() == cores  # torch's own number of threads stays
    finally:
        torch.set_num_threads(threads)
    assert sorted(asked) == sorted([*range(3, 25)] * 3)


def test_a_gpu_embeds_in_one_thread_what_others_read_a_little_in_advance() -> None:
    """cuDNN keeps the algorithms that it chose for each thread, so a new thread would choose them anew."""
    read: list[int] = []
    embedded: list[int] = []

    def embed(batch: tuple[int, int]) -> None:
        start, reader = batch
        assert reader != get_ident()
        assert get_ident() == main_thread().ident
        assert len(read) - len(embedded) <= 4
        embedded.append(start)

    def read_one(start: int) -> tuple[int, int]:
        read.append(start)
        return start, get_ident()

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        for_each(range(0, 100, 5), read_one, embed, torch.device("cuda", 1))
    finally:
        torch.set_num_threads(threads)
    assert embedded == sorted(read) == list(range(0, 100, 5))


def test_what_is_streamed_is_never_in_memory_as_a_whole(alone: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_set, "HELD_BYTES", 0)
    count = 600  # 23 MB
    some = ImageSet(
        "some", "", "", count, lambda row: np.full((112, 112, 3), row % 256, np.uint8), PairList(*[np.zeros(0)] * 4)
    )  # type: ignore[arg-type]
    config = load(SMALL)
    network = network_of(config, 1)
    tracemalloc.start()  # traces NumPy's memory, not torch's
    try:
        faces_of = decode(some, np.arange(count), alone)
        embed_all(network, faces_of, config.backbone, alone, batch_size=4, flip=False)
        assert tracemalloc.get_traced_memory()[1] < 6e6
    finally:
        tracemalloc.stop()


@given(count=st.integers(0, 60), batch=st.integers(1, 9), size=st.integers(1, 5))
def test_images_are_shared_in_whole_batches_each_once(count: int, batch: int, size: int) -> None:
    shares = [own_rows(count, batch, World(rank, size, torch.device("cpu"))) for rank in range(size)]
    assert np.concatenate(shares).tolist() == list(range(count))
    assert all(len(rows) == 0 or rows[0] % batch == 0 for rows in shares)


RANK = """
import sys
from pathlib import Path
from app import evaluate
from app.errors import WrongUse
from app.evaluation import image_set
from app.runtime import dist
from app.runtime.stop import Stop
weights, sets, broken, out = sys.argv[1:]
with dist.world() as here:
    def run(sets):
        request = evaluate.decide([f"weights={weights}", f"sets={sets}", f"out={out}/{here.size}"])
        return evaluate.evaluate(request, here, Stop())
    for held in (0, 2**31):  # read while they are embedded, or before
        image_set.HELD_BYTES = held
        run(sets)
        try:
            run(broken)
            raise SystemExit("read what cannot be read")
        except WrongUse as error:  # on every rank, though one of them has the image
            assert "image 239 of" in str(error)
print("fine")
"""


@pytest.mark.slow
def test_two_and_three_processes_find_what_one_finds_and_refuse_what_one_cannot_read(
    place: Path, tmp_path: Path
) -> None:
    files, same = pickle.loads((place / "lfw.bin").read_bytes())  # noqa: S301 - our own
    (tmp_path / "broken.bin").write_bytes(pickle.dumps(([*files[:-1], b"no image"], same)))
    weights, sets = (word.split("=", 1)[1] for word in words(place, "lfw.bin", "people", "IJBC"))
    assert evaluate.main([f"weights={weights}", f"sets={sets}", f"out={tmp_path / '1'}"]) == 0
    for size in (2, 3):
        run_ranks(RANK, size, weights, sets, str(tmp_path / "broken.bin"), str(tmp_path))
    documents = []
    for size in (1, 2, 3):
        document = json.loads((tmp_path / str(size) / "eval.json").read_text())
        assert document.pop("world_size") == size
        documents.append(document)
    assert documents[0] == documents[1] == documents[2]


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        ([], "weights=…"),
        (["weights=nowhere/*.pt"], "weights=nowhere/*.pt matches no file"),
        (["weights={runs}/one/checkpoints/*.pt", "sets=nowhere/*.bin"], "sets=nowhere/*.bin matches no file"),
        (["weights={runs}/one/checkpoints/*.pt", "sets="], "sets= names nothing"),
        (["weights={runs}/one/checkpoints/*.pt", "flip=maybe"], "flip=maybe"),
        (["weights={runs}/one", "sets={lfw}"], "one is a folder; give the files in it"),
        (["weights={runs}/junk", "sets={lfw}", "backbone=iresnet18"], "corrupt or not a Sniperface checkpoint"),
        (["wieghts={runs}/one/checkpoints/*.pt"], "did you mean weights?"),
        (["weights={runs}/one/checkpoints/*.pt", "set={lfw}"], "did you mean sets?"),
        (["weights={runs}/one/checkpoints/*.pt", "backbone=iresnet18"], "cannot change what was trained"),
        (["weights={runs}/one/checkpoints/*.pt", "train.eval.batchsize=4"], "train.eval.batch_size"),
        (["weights={runs}/one/config.yaml", "sets={lfw}"], "backbone=iresnet50"),
        (["weights={runs}/other.pt", "sets={lfw}", "backbone=iresnet18"], "other.pt holds no backbone"),
        (["weights={runs}/one/checkpoints/*.pt", "sets={lfw}", "backbone.width=16"], "cannot change what was trained"),
        (["weights={lfw}", "backbone=iresnet18"], "no data set of its own"),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_code_2(
    given: list[str], answer: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [word.format(runs=place / "runs", lfw=place / "lfw.bin") for word in given]
    assert evaluate.main([*filled, f"out={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert answer in said
    assert said.count("\n") == 1


def test_a_label_may_be_any_number() -> None:
    """A label of two billion allocates no array of two billion elements."""
    labels = np.array([7, 7, 2**31 - 2, 2**31 - 2] * 5, np.int32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert enough(labels)
    same = np.eye(2, dtype=np.float32)[(labels == 7).astype(int)]
    assert rank1(same, labels) == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
