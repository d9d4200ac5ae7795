"""Margin heads: what is asked of the angle between an embedding and the centre of its class, as cosines -> logits.

One contract for all of them, made for class centres that are spread over ranks and sampled (app/models/partial_fc.py):
a head sees the cosines with the centres of one rank, and what it must know of the others as one number an image.

- combined: cos(m1 * angle + m2) - m3; its two special cases are ArcFace (Deng et al. 2019, arXiv:1801.07698; m2 alone)
  and CosFace (Wang et al. 2018, arXiv:1801.09414; m3 alone)
- sphereface: (-1)^k cos(m * angle) - 2k, k = floor(m * angle / pi) (Liu et al. 2017, arXiv:1704.08063)
- adaface: more of the margin on the angle for images of small norm, more off the cosine for those of great norm
  (Kim et al. 2022, arXiv:2204.00964)
- magface: a margin that grows with the norm, and a price for small norms (Meng et al. 2021, arXiv:2103.06627)
- curricularface: other classes that are nearer than the own one after its margin weigh more, the more so the further
  the training is (Huang et al. 2020, arXiv:2004.00288)

Straight-through, as arcface_torch has it since 2022 and OpenSphere for SphereFace: the logit of the own class has the
margin in its value and not in its gradient, which is that of scale * cosine. Without it the gradient is the true one.

Past an angle of pi - margin the cosine of ArcFace rises again, and the gradient points the wrong way: published so,
kept so, and without effect when straight-through. CurricularFace goes on with a straight line there, MagFace asks for a
margin below 90 degrees only, AdaFace stops at pi.

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
MEAN_SHARE = 0.01  # how far the running means of AdaFace and CurricularFace move towards those of a batch


class Head(nn.Module):
    """The logits of a rank's centres. A subclass says what becomes of the own class, and perhaps of the others."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.scale = config.scale
        self.margin = PUBLISHED_MARGINS.get(config.name, 0.0) if config.margin is None else config.margin
        self.filter_above = config.filter_above
        self.straight_through = False

    def forward(self, cosine: Tensor, own: Tensor, target: Tensor, norms: Tensor) -> Tensor:
        """Logits [B, n].

        cosine [B, n] in [-1, 1]; own int64 [B]: the column of an image's own class, or -1 where it is on another rank
        or none of them; target [B]: the cosine with the own class wherever it is, without a gradient; norms [B] of the
        embeddings before they were made unit vectors.
        """
        if self.training:
            self.observe(target, norms.detach())
        others = self.other_classes(cosine, target)
        if self.filter_above is not None:
            others = others.masked_fill(cosine > self.filter_above, 0.0)
        others = others * self.scale
        if not cosine.shape[1]:
            return others
        # An image whose class is elsewhere goes along with a cosine of 0, and its number is left out at the end: a
        # choice of rows would make the host wait for the device.
        here, column = (own >= 0)[:, None], own.clamp(min=0)[:, None]  # [B, 1]
        # One number an image: the digits that angles lose cost nothing to keep.
        mine = torch.where(here, cosine.gather(1, column), 0.0).double()[:, 0]
        asked = self.own_class(mine, norms.double())
        if self.straight_through:
            asked = asked.detach() + (mine - mine.detach())
        asked = (asked * self.scale).to(others.dtype)[:, None]
        return others.scatter(1, column, torch.where(here, asked, others.gather(1, column)))

    def own_class(self, cosine: Tensor, norms: Tensor) -> Tensor:
        """What stands for the cosine with the own class: both and the result float64 [B]."""
        raise NotImplementedError

    def other_classes(self, cosine: Tensor, target: Tensor) -> Tensor:  # noqa: ARG002 - for those who need it
        """What stands for the cosines [B, n] with all other classes; where the own one is does not matter."""
        return cosine

    def observe(self, target: Tensor, norms: Tensor) -> None:
        """See cosines and norms [B] of all ranks before they are used, to keep statistics of them."""

    def penalty(self, norms: Tensor) -> Tensor | None:  # noqa: ARG002 - for those who have one
        """A further loss of each image [B], or none."""
        return None


class Combined(Head):
    """cos(m1 * angle + m2) - m3. ArcFace has m2 alone, CosFace m3 alone."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        special = {"arcface": (1.0, self.margin, 0.0), "cosface": (1.0, 0.0, self.margin)}
        self.m1, self.m2, self.m3 = special.get(config.name, config.margins)
        self.straight_through = config.straight_through

    def own_class(self, cosine: Tensor, norms: Tensor) -> Tensor:  # noqa: ARG002 - the same for all norms
        if self.m1 == 1:
            turned = further(cosine, self.m2) if self.m2 else cosine
        else:
            turned = (self.m1 * angle(cosine) + self.m2).cos()
        return turned - self.m3


class SphereFace(Head):
    """(-1)^k cos(m * angle) - 2k: the cosine of m times the angle, continued so that it falls all the way to pi."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.straight_through = config.straight_through

    def own_class(self, cosine: Tensor, norms: Tensor) -> Tensor:  # noqa: ARG002 - the same for all norms
        wide = self.margin * angle(cosine)
        k = (wide.detach() / math.pi).floor()
        return (1 - 2 * (k % 2)) * wide.cos() - 2 * k


class AdaFace(Head):
    """cos(angle - m * z) - (m + m * z), where z says how far an embedding's norm is from the mean: from -1 to 1."""

    SPREAD = 0.333  # z of a norm that is one standard deviation above the mean
    EDGE = 1e-3  # cosines stay so far from 1 and -1, angles from 0 and pi

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.register_buffer("mean", torch.tensor(20.0))
        self.register_buffer("deviation", torch.tensor(100.0))

    def observe(self, target: Tensor, norms: Tensor) -> None:  # noqa: ARG002 - norms alone
        norms = norms.clamp(1e-3, 100)
        follow(self.mean, norms.mean())
        if len(norms) > 1:
            follow(self.deviation, norms.std())

    def own_class(self, cosine: Tensor, norms: Tensor) -> Tensor:
        norms = norms.detach().clamp(1e-3, 100)  # the norm decides, it is not taught
        z = ((norms - self.mean) / (self.deviation + 1e-3) * self.SPREAD).clamp(-1, 1)
        turned = angle(self.inside(cosine)) - self.margin * z
        return turned.clamp(self.EDGE, math.pi - self.EDGE).cos() - (self.margin + self.margin * z)

    def other_classes(self, cosine: Tensor, target: Tensor) -> Tensor:  # noqa: ARG002 - cosines alone
        return self.inside(cosine)

    def inside(self, cosine: Tensor) -> Tensor:
        return cosine.clamp(self.EDGE - 1, 1 - self.EDGE)


class MagFace(Head):
    """cos(angle + m(a)) where the cosine is positive; m is linear in the norm a, and small norms cost.

    `margin` is the one of the smallest norm; that of the greatest is 0.35 more, as published.
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
    """ArcFace, in which another class of cosine c above that of the own one after its margin has c * (t + c) instead.

    t is the running mean of the cosines with the own class: 0 at first, so that hard ones count less, later more.
    """

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.register_buffer("t", torch.tensor(0.0))

    def observe(self, target: Tensor, norms: Tensor) -> None:  # noqa: ARG002 - cosines alone
        follow(self.t, target.mean())

    def own_class(self, cosine: Tensor, norms: Tensor) -> Tensor:  # noqa: ARG002 - the same for all norms
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
    """The head of this configuration. Raises WrongUse for a name that there is not."""
    if config.name not in HEADS:
        raise WrongUse(f"recipe.head.name={config.name} is unknown; give one of {', '.join(HEADS)}")
    return HEADS[config.name](config)


def sine(cosine: Tensor) -> Tensor:
    """The sine of an angle between 0 and pi, from its cosine.

    (1 - c)(1 + c) is exact near the ends, where 1 - c * c is not; and only at the ends themselves, where the gradient
    is infinite, does the least value of 1e-6 hold, which makes it zero.
    """
    return ((1 - cosine) * (1 + cosine)).clamp_min(1e-12).sqrt()


def angle(cosine: Tensor) -> Tensor:
    """arccos, in radians, without its loss of digits and its infinite gradient at the ends."""
    return torch.atan2(sine(cosine), cosine)


def further(cosine: Tensor, margin: float | Tensor) -> Tensor:
    """cos(angle + margin), from the cosine of the angle; margin in radians."""
    if isinstance(margin, Tensor):
        return cosine * margin.cos() - sine(cosine) * margin.sin()
    return cosine * math.cos(margin) - sine(cosine) * math.sin(margin)


@torch.no_grad()
def follow(mean: Tensor, value: Tensor) -> None:
    """A running mean moves a little towards a value, or stays where that is not finite: it would be lost for ever."""
    mean.lerp_(torch.where(value.isfinite(), value, mean), MEAN_SHARE)
