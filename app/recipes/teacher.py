"""The teacher of recipe distill: a trained network that is frozen, in evaluation mode, and never saved again."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from app.config import BackboneConfig, Config, load
from app.data.arrays import SIDE
from app.data.augment import Augment
from app.errors import WrongUse
from app.models import build_backbone
from app.models.embedder import Embedder
from app.recipes.recipe import Batch
from app.runtime import checkpoint
from app.runtime.dist import World, from_main, together
from app.runtime.finite import NotFinite
from app.runtime.folder import RunFolder
from app.runtime.precision import dtype_of
from app.runtime.weights import has_fourier, load_backbone, read_backbone

KEY = "recipe.distill"


class Teacher:
    """Embeds the student's views, rendered at the teacher's own input size.

    Raises WrongUse, on all ranks, for a file that is no network, does not fit its backbone, or is not finite. Rank 0
    reads weights and sends them to the others; an ONNX file must be on each machine.
    """

    def __init__(self, config: Config, here: World) -> None:
        assert config.recipe.distill.teacher is not None, "app/config/checks.py asks for it"
        self.path = Path(config.recipe.distill.teacher)
        network, self.size, self.dim = self._network(config, here)
        precision = dtype_of(config.train.precision, here.device)
        self.embedder = Embedder(network, self.size, device=here.device, precision=precision)
        self.augment = Augment(config.recipe.augment, self.size)
        with together(here):
            self._refuse_not_finite(here.device)
        self.sha256 = from_main(checkpoint.sha256(self.path) if here.is_main else "", here)

    @torch.no_grad()
    def __call__(self, views: Tensor, batch: Batch) -> Tensor:
        """Return embeddings [B, T] of a batch; `views` [B, 3, S, S] are the student's."""
        if views.shape[-1] != self.size:
            views = self.augment(batch.images, batch.draws)  # the same crop and colours from the original pixels
        return self.embedder(views)[0]

    def _network(self, config: Config, here: World) -> tuple[nn.Module, int, int]:
        """Build the network and load its weights. Returns it with its input side and embedding size."""
        if self.path.suffix == ".onnx":
            from app.onnx.network import OnnxNetwork  # needs the package onnx, which other runs start without

            with together(here):
                onnx = OnnxNetwork(self.path)
            return onnx, SIDE, onnx.embedding_dim
        backbone = None
        with together(here):
            if here.is_main:
                backbone = backbone_of(self.path, config)
        told = from_main(backbone, here)
        assert told is not None, "rank 0 has one"
        network = build_backbone(told)
        try:
            load_backbone(self.path, network, here=here)
        except NotFinite as error:
            raise WrongUse(f"{KEY}.teacher: {error}") from error
        return network, told.image_size, told.embedding_dim

    def _refuse_not_finite(self, device: torch.device) -> None:
        image = torch.linspace(-1, 1, self.size, device=device).expand(2, 3, self.size, self.size)
        with torch.no_grad():
            if not bool(self.embedder(image)[0].isfinite().all()):
                raise WrongUse(f"{KEY}.teacher={self.path} gives embeddings that are not finite; give another file")


def backbone_of(path: Path, config: Config) -> BackboneConfig:
    """The backbone of a file of weights: of its run's config.yaml, or as `recipe.distill.backbone` names it.

    Raises WrongUse if neither tells.
    """
    distill, run = config.recipe.distill, RunFolder.with_weights(path)
    if distill.backbone is None:
        if run is None:
            raise WrongUse(
                f"{KEY}.teacher={path} is not in a run's folder, so its backbone is unknown; "
                f"add one such as {KEY}.backbone=iresnet50"
            )
        return load([], base=run.config).backbone
    if distill.fourier == "none" and has_fourier(read_backbone(path)):
        raise WrongUse(
            f"{KEY}.teacher={path} has a Fourier layer but does not record its mask; add the mask it was trained with, "
            f"{KEY}.fourier=vit or {KEY}.fourier=iresnet"
        )
    try:
        return load([f"backbone={distill.backbone}", f"backbone.fourier={distill.fourier}"]).backbone
    except WrongUse as error:
        raise WrongUse(f"{KEY}.{error}") from error
