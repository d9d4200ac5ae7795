"""Margin heads: turn the cosines between embeddings and class centres into logits, with a margin on the own class.

All heads share one interface, made for class centres that are sampled and spread over ranks (app/models/partial_fc.py).
A head receives the cosines with one rank's centres, plus one number per image about the other ranks' centres.

- combined: cos(m1 * angle + m2) - m3; its two special cases are ArcFace (Deng et al. 2019, arXiv:1801.07698; m2 alone)
  and CosFace (Wang et al. 2018, arXiv:1801.09414; m3 alone)
- sphereface: (-1)^k cos(m * angle) - 2k, k = floor(m * angle / pi) (Liu et al. 2017, arXiv:1704.08063)
- adaface: more of the margin on the angle for images of small norm, more on the cosine for those of large norm (Kim et
  al. 2022, arXiv:2204.00964)
- magface: a margin that grows with the norm, and a penalty on small norms (Meng et al. 2021, arXiv:2103.06627)
- curricularface: other classes that are nearer than the own class after its margin weigh more, increasingly so as
  training proceeds (Huang et al. 2020, arXiv:2004.00288)

Straight-through, as in arcface_torch since 2022 and in OpenSphere for SphereFace: the margin changes the value of the
own class's logit but not its gradient, which is that of scale * cosine. Without it the gradient includes the margin.

Past an angle of pi - margin the cosine of ArcFace rises again and the gradient points the wrong way. This is kept as
published; straight-through avoids it. CurricularFace continues with a straight line there, MagFace applies a margin
only below 90 degrees, AdaFace clamps at pi.

Letters: B images of all ranks, n centres compared with on this rank.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from app.config.schema import HeadConfig
from app.errors import WrongUse

PUBLISHED_MARGINS = {
    "arcface": 0.5,
    "cosface": 0.4,
    "sphereface": 1.7,
    "adaface": 0.4,
    "magface": 0.45,
    "curricularface": 0.5,
}
MEAN_SHARE = 0.01  # step of the running means of AdaFace and CurricularFace towards a batch's values


class Head(nn.Module):
    """Compute the logits of a rank's centres.

    A subclass defines the value of the own class, and optionally those of the others.
    """

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.scale = config.scale
        self.margin = PUBLISHED_MARGINS.get(config.name, 0.0) if config.margin is None else config.margin
        self.filter_above = config.filter_above
        self.straight_through = False

    def forward(self, cosine: Tensor, own: Tensor, target: Tensor, norms: Tensor) -> Tensor:
        """Return logits [B, n].

        cosine [B, n] in [-1, 1]; own int64 [B]: the column of an image's own class, -1 if it is not on this rank;
        target [B]: the cosine with the own class on whichever rank it is, without a gradient; norms [B] of the
        embeddings before they were normalised.
        """
        if self.training:
            self.observe(target, norms.detach())
        others = self.other_classes(cosine, target)
        if self.filter_above is not None:
            others = others.masked_fill(cosine > self.filter_above, 0.0)
        others = others * self.scale
        if not cosine.shape[1]:
            return others
        # An image whose class is on another rank takes part with a cosine of 0, and its result is dropped at the end:
        # selecting rows would make the host wait for the device.
        here, column = (own >= 0)[:, None], own.clamp(min=0)[:, None]  # [B, 1]
        # In float64, as angles lose digits: cheap for one number per image.
        mine = torch.where(here, cosine.gather(1, column), 0.0).double()[:, 0]
        asked = self.own_class(mine, norms.double())
        if self.straight_through:
            asked = asked.detach() + (mine - mine.detach())
        asked = (asked * self.scale).to(others.dtype)[:, None]
        return others.scatter(1, column, torch.where(here, asked, others.gather(1, column)))

    def own_class(self, cosine: Tensor, norms: Tensor) -> Tensor:
        """Replace the cosine with the own class: input and result are float64 [B]."""
        raise NotImplementedError

    def other_classes(self, cosine: Tensor, target: Tensor) -> Tensor:  # noqa: ARG002 - subclasses use it
        """Replace the cosines [B, n] with all other classes; the value for the own class is ignored."""
        return cosine

    def observe(self, target: Tensor, norms: Tensor) -> None:
        """Update statistics from cosines and norms [B] of all ranks, before they are used."""

    def penalty(self, norms: Tensor) -> Tensor | None:  # noqa: ARG002 - subclasses use it
        """Return an additional loss of each image [B], or None."""
        return None


class Combined(Head):
    """cos(m1 * angle + m2) - m3. ArcFace has m2 alone, CosFace m3 alone."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        special = {"arcface": (1.0, self.margin, 0.0), "cosface": (1.0, 0.0, self.margin)}
        self.m1, self.m2, self.m3 = special.get(config.name, config.margins)
        self.straight_through = config.straight_through

    def own_class(self, cosine: Tensor, norms: Tensor) -> Tensor:  # noqa: ARG002 - independent of norms
        if self.m1 == 1:
            turned = further(cosine, self.m2) if self.m2 else cosine
        else:
            turned = (self.m1 * angle(cosine) + self.m2).cos()
        return turned - self.m3


class SphereFace(Head):
    """(-1)^k cos(m * angle) - 2k: the cosine of m times the angle, continued so that it decreases all the way to pi."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.straight_through = config.straight_through

    def own_class(self, cosine: Tensor, norms: Tensor) -> Tensor:  # noqa: ARG002 - independent of norms
        wide = self.margin * angle(cosine)
        k = (wide.detach() / math.pi).floor()
        return (1 - 2 * (k % 2)) * wide.cos() - 2 * k


class AdaFace(Head):
    """cos(angle - m * z) - (m + m * z), where z in [-1, 1] is how far an embedding's norm is from the mean."""

    SPREAD = 0.333  # z of a norm that is one standard deviation above the mean
    EDGE = 1e-3  # least distance of cosines from 1 and -1, and of angles from 0 and pi

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.register_buffer("mean", torch.tensor(20.0))
        self.register_buffer("deviation", torch.tensor(100.0))

    def observe(self, target: Tensor, norms: Tensor) -> None:  # noqa: ARG002 - uses norms only
        norms = norms.clamp(1e-3, 100)
        follow(self.mean, norms.mean())
        if len(norms) > 1:
            follow(self.deviation, norms.std())

    def own_class(self, cosine: Tensor, norms: Tensor) -> Tensor:
        norms = norms.detach().clamp(1e-3, 100)  # the norm gets no gradient
        z = ((norms - self.mean) / (self.deviation + 1e-3) * self.SPREAD).clamp(-1, 1)
        turned = angle(self.inside(cosine)) - self.margin * z
        return turned.clamp(self.EDGE, math.pi - self.EDGE).cos() - (self.margin + self.margin * z)

    def other_classes(self, cosine: Tensor, target: Tensor) -> Tensor:  # noqa: ARG002 - uses cosines only
        return self.inside(cosine)

    def inside(self, cosine: Tensor) -> Tensor:
        return cosine.clamp(self.EDGE - 1, 1 - self.EDGE)


class MagFace(Head):
    """cos(angle + m(a)) where the cosine is positive; m is linear in the norm a, and small norms are penalised.

    `margin` applies at the smallest norm; at the largest norm it is 0.35 more, as published.
    """

    NORMS = (10.0, 110.0)
    RISE = 0.35
    PRICE = 35.0

    def own_class(self, cosine: Tensor, norms: Tensor) -> Tensor:
        low, high = self.NORMS
        margin = self.margin + self.RISE * (norms.clamp(low, high) - low) / (high - low)
        return torch.where(cosine > 0, further(cosine, margin), cosine)

    def penalty(self, norms: Tensor) -> Tensor:
        low, high = self.NORMS
        norms = norms.clamp(low, high)
        return self.PRICE * (norms / high**2 + 1 / norms)


class CurricularFace(Head):
    """ArcFace, except that another class whose cosine c exceeds the own one after its margin gets c * (t + c) instead.

    t is the running mean of the cosines with the own class. It starts at 0, so hard classes weigh less at first and
    more later.
    """

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.register_buffer("t", torch.tensor(0.0))

    def observe(self, target: Tensor, norms: Tensor) -> None:  # noqa: ARG002 - uses cosines only
        follow(self.t, target.mean())

    def own_class(self, cosine: Tensor, norms: Tensor) -> Tensor:  # noqa: ARG002 - independent of norms
        line = cosine - self.margin * math.sin(self.margin)
        return torch.where(cosine > -math.cos(self.margin), further(cosine, self.margin), line)

    def other_classes(self, cosine: Tensor, target: Tensor) -> Tensor:
        hard = cosine > further(target, self.margin)[:, None]
        return torch.where(hard, cosine * (self.t + cosine), cosine)


HEADS: dict[str, type[Head]] = {
    "combined": Combined,
    "arcface": Combined,
    "cosface": Combined,
    "sphereface": SphereFace,
    "adaface": AdaFace,
    "magface": MagFace,
    "curricularface": CurricularFace,
}


def build_head(config: HeadConfig) -> Head:
    """Build the head of this configuration. Raises WrongUse for an unknown name."""
    if config.name not in HEADS:
        raise WrongUse(f"recipe.head.name={config.name} is unknown; give one of {', '.join(HEADS)}")
    return HEADS[config.name](config)


def sine(cosine: Tensor) -> Tensor:
    """Return the sine of an angle between 0 and pi, from its cosine.

    (1 - c)(1 + c) is exact near the ends, where 1 - c * c is not. At the ends the gradient is infinite; there the
    minimum of 1e-6 applies, which makes it zero.
    """
    return ((1 - cosine) * (1 + cosine)).clamp_min(1e-12).sqrt()


def angle(cosine: Tensor) -> Tensor:
    """Return arccos in radians, without its loss of digits and its infinite gradient at the ends."""
    return torch.atan2(sine(cosine), cosine)


def further(cosine: Tensor, margin: float | Tensor) -> Tensor:
    """Return cos(angle + margin), from the cosine of the angle; margin in radians."""
    if isinstance(margin, Tensor):
        return cosine * margin.cos() - sine(cosine) * margin.sin()
    return cosine * math.cos(margin) - sine(cosine) * math.sin(margin)


@torch.no_grad()
def follow(mean: Tensor, value: Tensor) -> None:
    """Move a running mean a little towards a value. A value that is not finite is skipped: it would spoil the mean."""
    mean.lerp_(torch.where(value.isfinite(), value, mean), MEAN_SHARE)
