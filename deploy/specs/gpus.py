"""PURE: --gpus and --spot: the GPUs of a provider's catalogue that are rented, by the words that a user types."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from deploy.errors import WrongUse, command
from deploy.specs.machine import Machine, Rental
from deploy.specs.options import Options

COUNT = re.compile(r"[1-9][0-9]{0,3}")
GPUS, GPU_COUNT, SPOT = "gpus", "gpu_count", "spot"  # what a command can say; see Options.renting


@dataclass(frozen=True)
class Choice:
    """What to rent instead of the target's own GPUs. `names`: the catalogue's, in the order in which they are tried."""

    names: tuple[str, ...]
    count: int
    titles: tuple[str, ...] = ()  # further names of the same GPUs, as a machine may report them


def parse_gpus(texts: Sequence[str]) -> tuple[str, ...]:
    """Validate `NAME[:COUNT]` texts, each perhaps several with commas. Returns each alternative with the one count.

    Raises WrongUse.
    """
    names: dict[str, None] = {}
    counts: dict[str, None] = {}
    for text in ",".join(texts).split(","):
        name, colon, count = (part.strip() for part in text.partition(":"))
        if not _words(name):
            typed = ",".join(texts)
            raise WrongUse(f"--gpus {typed!r} has an empty name: give names of GPUs, such as --gpus A100:2,A40:2")
        if colon and not COUNT.fullmatch(count):
            raise WrongUse(
                f"--gpus {text.strip()} has no number of GPUs after the colon: give a whole number from 1, such as "
                f"--gpus {name}:2"
            )
        names[name] = None
        counts |= {count: None} if colon else {}
    if len(counts) > 1:
        same = ",".join(f"{name}:{next(iter(counts))}" for name in names)
        raise WrongUse(
            f"--gpus {','.join(texts)} has several counts, and all alternatives have the same: give one, such as "
            f"--gpus {same}"
        )
    return tuple(f"{name}:{count}" for name in names for count in counts) or tuple(names)


def names_of(gpus: Sequence[str]) -> tuple[str, ...]:
    return tuple(each.partition(":")[0] for each in gpus)


def count_of(gpus: Sequence[str]) -> int | None:
    """The number of GPUs of each machine; None: the target's gpu_count."""
    return next((int(count) for each in gpus if (count := each.partition(":")[2])), None)


def typed(gpus: Sequence[str]) -> str:
    return f"--gpus {','.join(gpus)}"


@dataclass(frozen=True)
class Renting:
    """What a command says about renting, as validated. Without a word, the target's file decides."""

    gpus: tuple[str, ...] = ()  # NAME or NAME:COUNT
    spot: bool = False
    no_spot: bool = False

    def applied(
        self,
        own: Options,
        target: str,
        where: str,
        catalogue: Callable[[Options], Sequence[Rental]],
        *,
        at_any_price: bool = False,
    ) -> tuple[Options, Choice | None]:
        """Return the target's keys with what this says, and the GPUs that are chosen; None: the target's own.

        `own`: the keys of the target's file, `where`. `catalogue`: what the provider offers with these keys.
        `at_any_price`: the target's max_usd_per_hour does not count. Raises WrongUse for what the target or the
        provider has not, and for values that do not go together.
        """
        said = self.said(own.renting, target)
        options = _checked(own.renting_as(said), where)
        if not self.gpus:
            return options, None
        rentals = catalogue(options)
        if not options.lists_all_gpus:
            refuse_unlisted(self.gpus, rentals, where)
        ceiling = None if at_any_price else getattr(options, "max_usd_per_hour", None)
        choice = choose(self.gpus, rentals, options.rents[1] if options.rents else 1, ceiling, target, where)
        return _checked(own.renting_as({**said, GPUS: choice.names, GPU_COUNT: choice.count}), where), choice

    def said(self, keys: Mapping[str, str], target: str) -> dict[str, object]:
        """What needs no catalogue, by the words of Options.renting. `keys`: those of the target.

        Raises WrongUse for a target that does not rent so.
        """
        refuse_other_targets(self.gpus, self.spot, keys, target)
        spot = {SPOT: self.spot} if self.spot or (self.no_spot and SPOT in keys) else {}
        count = count_of(self.gpus)
        return {**spot, GPU_COUNT: count} if count else {**spot}


def _checked(options: Options, where: str) -> Options:
    if options.wrong:
        raise WrongUse(f"{where}: {options.wrong}")
    return options


def refuse_other_machine(asked: Renting, choice: Choice, machines: Sequence[Machine], target: str) -> None:
    """Raise WrongUse if the target has a machine with other GPUs: it would be used, or a second one would bill.

    `machines`: those of the target that a run would use.
    """
    for machine in machines:
        if machine.gpu and (machine.gpus != choice.count or not is_among(machine.gpu, choice)):
            raise WrongUse(
                f"{typed(asked.gpus)}: the machine of target '{target}' has {machine.gpus} x {machine.gpu}: "
                "leave --gpus out to use it, or release it first",
                next_command=command(f"down --on {target}"),
            )


def refuse_other_targets(gpus: Sequence[str], spot: bool, keys: Mapping[str, str], target: str) -> None:
    """Raise WrongUse for a target that does not rent so. `keys`: see Options.renting."""
    instead = f"leave it out, or give --on with one that does; {command('target list')} names all"
    if gpus and GPUS not in keys:
        raise WrongUse(f"{typed(gpus)}: target '{target}' rents no GPUs: {instead}")
    if spot and SPOT not in keys:
        raise WrongUse(f"--spot: target '{target}' rents no spot machines: {instead}")


def refuse_unlisted(gpus: Sequence[str], rentals: Sequence[Rental], where: str) -> None:
    """Raise WrongUse for a name that may exist, but that this client of the provider does not list."""
    for name in names_of(gpus):
        if not fitting(name, rentals):
            listed = ", ".join(each.gpu for each in rentals) or "none"
            raise WrongUse(
                f"--gpus {name}: api: sdk knows only the GPUs of gpus: in {where} ({listed}): add it, or set api: v2"
            )


def choose(
    gpus: Sequence[str], rentals: Sequence[Rental], default_count: int, ceiling: float | None, target: str, where: str
) -> Choice:
    """Return the offered GPUs that are meant: alternatives in the user's order, several that fit one by price.

    `default_count`: without a count. `ceiling`: the target's max_usd_per_hour. Raises WrongUse for a name that no GPU
    has, and for a count or price that none can meet.
    """
    chosen: dict[str, Rental] = {}
    count = count_of(gpus)
    for name in names_of(gpus):
        found = fitting(name, rentals)
        if not found:
            raise WrongUse(_unknown(name, rentals), next_command=command(f"offers --on {target}"))
        if count is None and len(found) == 1 and len(found[0].counts) == 1:  # the name of a machine type has its count
            count = found[0].counts[0]
        wanted = count or default_count
        fits = [each for each in found if wanted in each.counts]
        if not fits:
            raise WrongUse(_count(name, wanted, found), next_command=command(f"offers --on {target}"))
        fits.sort(key=lambda each: (each.usd_per_hour or math.inf, each.gpu))
        chosen.update((each.gpu, each) for each in fits if each.gpu not in chosen)
    cheapest = min(each.usd_per_hour for each in chosen.values())
    if ceiling is not None and cheapest > ceiling + 1e-9:
        raise WrongUse(
            f"{typed(gpus)} costs {cheapest:.2f} USD an hour or more, above max_usd_per_hour: {ceiling:g} in {where}: "
            f"set max_usd_per_hour: {math.ceil(cheapest)}, or name cheaper GPUs",
            next_command=command(f"offers --on {target}"),
        )
    return Choice(tuple(chosen), count or default_count, tuple(each.title for each in chosen.values() if each.title))


def fitting(name: str, rentals: Sequence[Rental]) -> list[Rental]:
    """The offers that a user means by a name.

    Those of exactly this name; else those with its words side by side, as A100 in "NVIDIA A100-SXM4-80GB"; else those
    with all its words. A word counts as a whole: A40 is not in "NVIDIA RTX A4000".
    """
    exact = [each for each in rentals if name.casefold() in (each.gpu.casefold(), each.title.casefold())]
    wanted = _words(name)
    beside = [each for each in rentals if _contains(each.gpu, wanted) or _contains(each.title, wanted)]
    anywhere = [each for each in rentals if {*wanted} <= {*_words(each.gpu), *_words(each.title)}]
    return exact or beside or anywhere


def is_among(gpu: str, choice: Choice) -> bool:
    """Whether a machine's GPU, as the provider reports it there, is one of the chosen."""
    names = (*choice.names, *choice.titles)
    return gpu in names or any(_contains(gpu, _words(each)) or _contains(each, _words(gpu)) for each in names)


def _contains(name: str, wanted: Sequence[str]) -> bool:
    words = _words(name)
    return any(words[start : start + len(wanted)] == [*wanted] for start in range(len(words)))


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", name.lower())


def _unknown(name: str, rentals: Sequence[Rental]) -> str:
    known = {each.casefold(): rental.gpu for rental in rentals for each in (rental.title, rental.gpu) if each}
    near = difflib.get_close_matches(name.casefold(), known, n=1, cutoff=0.5)
    hint = f", did you mean --gpus {quoted(known[near[0]])}?" if near else ""
    if not near and COUNT.fullmatch(name) and rentals:
        hint = f": give a name, and the number after a colon, such as --gpus {quoted(f'{rentals[0].gpu}:{name}')}"
    return f"--gpus {name}: the provider has no GPU of this name{hint}"


def _count(name: str, wanted: int, found: Sequence[Rental]) -> str:
    """Why no machine has so many of these GPUs, and a number that one has."""
    counts = sorted({count for each in found for count in each.counts})
    what = f"--gpus {name}:{wanted}: {found[0].gpu}"
    if not counts:
        return f"{what} cannot be rented ({found[0].why_not}): name another GPU"
    near = max((count for count in counts if count <= wanted), default=counts[0])
    most = f"the largest machine has {counts[-1]}" if wanted > counts[-1] else "no machine has so many"
    return f"{what}: {most}: give --gpus {quoted(f'{name}:{near}')}"


def quoted(text: str) -> str:
    return f'"{text}"' if " " in text else text
