"""The checks in their order: correctness first, then speed. Budgets add up to slightly more than `--limit`'s 540 s."""

from __future__ import annotations

from benchmarks.gpu import candidates, correctness, ranks, searching, steps
from benchmarks.gpu.running import Check

COMPOSES = ("hydra", "omegaconf")  # needed by app.config.load

CHECKS = [
    Check("rates", correctness.machine_rates, 10),
    Check("augmentation", correctness.augmentation, 15),
    Check("contrastive", correctness.contrastive, 10),
    Check("heads", correctness.heads, 20),
    Check("feeding", correctness.feeding, 10),
    Check("search_is_exact", correctness.search_is_exact, 15),
    Check("large_tables", correctness.large_tables, 10),
    Check("networks", correctness.networks, 25, COMPOSES),
    Check("overflow", correctness.overflow, 15, COMPOSES),
    Check("too_large", correctness.too_large, 20, COMPOSES),
    Check("experiments", correctness.experiments, 70, COMPOSES),
    Check("ranks", ranks.ranks, 30, COMPOSES),
    Check("waits", steps.waits, 20, COMPOSES),
    Check("augmentation_share", steps.augmentation_share, 20, COMPOSES),
    Check("profile", steps.profile, 20, COMPOSES),
    Check("embedding", searching.embedding, 30, COMPOSES),
    Check("evaluation", searching.evaluation, 15, COMPOSES),
    Check("search", searching.search_speed, 45),
    Check("partial_fc", searching.partial_fc, 25),
    Check("mining", searching.mining, 40),
    Check("steps", steps.step_speed, 50, COMPOSES, in_parts=True),
    Check("candidates", candidates.candidates, 55, COMPOSES, in_parts=True),
    Check("steps_compiled", steps.compiled_step_speed, 30, COMPOSES, in_parts=True),
]
CORRECTNESS = CHECKS[:11]
