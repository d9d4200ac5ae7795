"""Choose what to request, in which order, from the options and Lambda's offers. Pure functions, no I/O."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from deploy.providers.lambda_cloud.api import InstanceType
from deploy.providers.lambda_cloud.options import LambdaCloud
from deploy.specs.estimate import plural
from deploy.specs.machine import Rental

ARM = re.compile(r"\bG[HB]\d{3}\b")  # GPUs with an Arm CPU; the training environment was tested on x86-64 alone


def choose(options: LambdaCloud, types: Sequence[InstanceType]) -> list[tuple[InstanceType, str]]:
    """List types that fit, in the user's order or the cheapest first; each in each region with capacity."""
    named = options.instance_types
    order: Callable[[InstanceType], object] = (
        (lambda each: named.index(each.name)) if named else (lambda each: (each.usd_per_hour, each.name))
    )
    fits = sorted((each for each in types if not why_not(options, each)), key=order)  # type: ignore[arg-type]
    return [(each, region) for each in fits for region in _regions(options, each)]


def rentals(options: LambdaCloud, types: Sequence[InstanceType]) -> list[Rental]:
    """List the whole catalogue, each type with the reason why this target would not rent it, if there is one."""
    return [
        Rental(each.name, each.gpus, each.memory_gib, each.usd_per_hour, _regions(options, each),
               each.name in options.instance_types, _why_unfit(options, each), each.gpu,
               () if each.fault else (each.gpus,))
        for each in types
    ]  # fmt: skip


def refusals(options: LambdaCloud, types: Sequence[InstanceType]) -> list[str]:
    """Say why types that the target names, or any if it names none, are not requested."""
    return [f"{each.name}: {why}" for each in types if (why := why_not(options, each)) and _is_named(options, each)]


def why_not(options: LambdaCloud, kind: InstanceType) -> str:
    """Return why the target would not rent this type; empty if it would."""
    return _why_unfit(options, kind) if _is_named(options, kind) else "not in instance_types"


def too_dear(options: LambdaCloud, kind: InstanceType) -> str:
    """Return the price beside the ceiling, if it is higher; else empty."""
    ceiling = options.max_usd_per_hour
    if ceiling is None or kind.usd_per_hour <= ceiling + 1e-9:
        return ""
    return f"{kind.usd_per_hour:.2f} USD an hour, more than max_usd_per_hour: {ceiling:g}"


def _why_unfit(options: LambdaCloud, kind: InstanceType) -> str:
    """Return why this type does not fit the target or cannot be had now, whether or not the target names it."""
    if kind.fault:
        return f"its entry in the catalogue cannot be read: {kind.fault}"
    if ARM.search(kind.gpu) and not options.instance_types:
        return "its CPU is Arm; name it in instance_types to try it"
    if kind.gpus != options.gpu_count:
        return f"{plural(kind.gpus, 'GPU')}, not gpu_count: {options.gpu_count}"
    if options.min_gpu_memory_gib and (kind.memory_gib or 0.0) < options.min_gpu_memory_gib:
        return f"less memory than min_gpu_memory_gib: {options.min_gpu_memory_gib:g}"
    if dear := too_dear(options, kind):
        return dear
    if not _regions(options, kind):
        return f"no capacity in {', '.join(options.regions)}" if options.regions else "no capacity"
    return ""


def _is_named(options: LambdaCloud, kind: InstanceType) -> bool:
    return not options.instance_types or kind.name in options.instance_types


def _regions(options: LambdaCloud, kind: InstanceType) -> tuple[str, ...]:
    """Return the regions with capacity, in the user's order if there is one."""
    wanted = options.regions
    return tuple(each for each in wanted if each in kind.regions) if wanted else kind.regions
