"""The losses of distillation, against the formulas written out by hand."""

from __future__ import annotations

import pytest
import torch

from app.models.distillation import NoHead, Student, distillation_loss


def by_hand(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """d mean(1 - cos) / d s = (cos * s / |s| - t / |t|) / |s| / B, in float64, row by row."""
    rows = []
    for s, t in zip(student.double(), teacher.double(), strict=True):
        unit, wanted = s / s.dot(s).sqrt(), t / t.dot(t).sqrt()
        rows.append((unit.dot(wanted) * unit - wanted) / s.dot(s).sqrt() / len(student))
    return torch.stack(rows)


@pytest.mark.parametrize(("kind", "times"), [("cosine", 1), ("l2", 2)])
def test_loss_and_gradient_are_those_of_the_formula(kind: str, times: int) -> None:
    generator = torch.Generator().manual_seed(1)
    student = (3 * torch.randn(5, 8, generator=generator)).requires_grad_()
    teacher = 20 * torch.randn(5, 8, generator=generator)
    loss, cosine = distillation_loss(student, teacher, kind)
    loss.backward()
    torch.testing.assert_close(student.grad.double(), times * by_hand(student.detach(), teacher), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(loss.detach(), times * (1 - cosine))
    expected = torch.nn.functional.cosine_similarity(student.detach(), teacher).mean()
    torch.testing.assert_close(cosine, expected)


def test_only_directions_count() -> None:
    student, teacher = torch.randn(4, 6), torch.randn(4, 6)
    for kind in ("cosine", "l2"):
        same = distillation_loss(student, 7 * student, kind)[0]
        torch.testing.assert_close(same, torch.zeros(()), rtol=0, atol=1e-6)
        here, there = (distillation_loss(student, scale * teacher, kind)[0] for scale in (1, 100))
        torch.testing.assert_close(here, there)


def test_half_precision_does_not_reach_the_loss() -> None:
    student, teacher = torch.randn(4, 64), torch.randn(4, 64)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = distillation_loss(student, teacher, "cosine")[0]
    assert torch.equal(rounded, distillation_loss(student, teacher, "cosine")[0])


def test_the_student_gives_its_own_embedding_and_the_projected_one() -> None:
    backbone, matrix = torch.nn.Linear(6, 4), torch.nn.Linear(4, 3, bias=False)
    x = torch.randn(2, 6)
    own, projected = Student(backbone, matrix)(x)
    assert torch.equal(own, backbone(x))
    assert torch.equal(projected, backbone(x) @ matrix.weight.T)


def test_without_a_head_the_margin_loss_is_nothing() -> None:
    loss, metrics = NoHead()(torch.randn(2, 4), torch.zeros(2, dtype=torch.long))
    assert (float(loss), metrics, NoHead().tables()) == (0.0, {}, {})
