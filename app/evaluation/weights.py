"""What evaluate and embed are given: files of weights, the configuration of each, and how images are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from app.config import BackboneConfig, Config, load
from app.data.sources.photograph import FITS
from app.errors import WrongUse
from app.models import build_backbone
from app.runtime.folder import RunFolder
from app.runtime.weights import load_backbone


def how_read(given: Mapping[str, str]) -> tuple[bool, str]:
    """The words flip and fit: whether the mirror image is added, and how images become square. Raises WrongUse."""
    flip, fit = given.get("flip", "true"), given.get("fit", "crop")
    if flip not in ("true", "false"):
        raise WrongUse(f"flip={flip} is neither true nor false; give flip=false, or leave it out")
    if fit not in FITS:
        raise WrongUse(f"fit={fit} is not known; give fit={'|'.join(FITS)}, or leave it out")
    return flip == "true", fit


def with_configs(files: Sequence[Path], overrides: Sequence[str]) -> dict[Path, Config]:
    """The configuration of each file of weights: its run's config.yaml or, outside a run, the overrides.

    Raises WrongUse without both.
    """
    onnx = {file: config_of_onnx(file, overrides) for file in files if file.suffix == ".onnx"}
    files = [file for file in files if file not in onnx]
    runs = {file: run for file in files if (run := RunFolder.with_weights(file)) is not None}
    bare = [file for file in files if file not in runs]
    names_backbone = any(word.startswith("backbone=") for word in overrides)
    if bare and not names_backbone:
        raise WrongUse(
            f"{bare[0]} is not in a run's folder, so its backbone is unknown; add one such as backbone=iresnet50"
        )
    # With published weights among the files, backbone overrides apply to those alone.
    for_runs = [word for word in overrides if not (bare and word.startswith("backbone"))]
    of_run = {run.path: load(for_runs, base=run.config) for run in runs.values()}
    # Of their held-out people, none chose published weights.
    of_bare = load(["train.eval.validation=none", *overrides]) if bare else Config()
    return {**{file: of_bare if file in bare else of_run[runs[file].path] for file in files}, **onnx}


def config_of_onnx(file: Path, overrides: Sequence[str]) -> Config:
    """A configuration with the embedding size of an ONNX graph. Raises WrongUse for a graph that does not run."""
    from app.onnx.network import OnnxNetwork

    config = Config()
    config.train.eval = load([word for word in overrides if word.startswith("train.eval.")]).train.eval
    config.backbone = BackboneConfig(f"onnx:{file.name}", [], embedding_dim=OnnxNetwork(file).embedding_dim)
    return config


def network_of(file: Path, config: Config) -> nn.Module:
    """Build the network of a file of weights and load them. Raises WrongUse and NotFinite."""
    if file.suffix == ".onnx":
        from app.onnx.network import OnnxNetwork

        return OnnxNetwork(file)
    network = build_backbone(config.backbone)
    load_backbone(file, network)
    return network
