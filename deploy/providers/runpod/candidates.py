"""Choose what to request, in which order, from the options and RunPod's offers. Pure functions, no I/O."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from deploy.providers.runpod.api import Offer
from deploy.specs.estimate import plural
from deploy.specs.machine import Rental
from deploy.specs.settings import RunPod


@dataclass(frozen=True)
class Candidate:
    gpu: str
    data_center: str | None  # None: RunPod chooses
    usd_per_hour: float  # of the whole machine
    memory_gib: float | None  # of one GPU; None: the API does not report it

    def __str__(self) -> str:
        return _place(self.gpu, self.data_center)


@dataclass(frozen=True)
class Refusal:
    place: str
    why: str
    by_rule: bool = False  # a 400 whose text does not mention capacity: the request itself may be wrong
    was_asked: bool = True  # False: the catalogue or the time decided
    is_forbidden: bool = False  # a 403: the key may not rent it, or the account may not

    def __str__(self) -> str:
        return f"{self.place}: {self.why}"


@dataclass(frozen=True)
class Chosen:
    candidates: Sequence[Candidate]
    refusals: Sequence[Refusal]


def at_spot(offers: Sequence[Offer], prices: Mapping[str, float]) -> list[Offer]:
    """Return the offers at spot prices. One without such a price cannot be rented so."""
    without = "RunPod has no spot price for it now"
    return [
        replace(each, usd_per_gpu_hour=prices[each.gpu])
        if each.gpu in prices
        else replace(each, why_not=each.why_not or without)
        for each in offers
    ]


def choose(options: RunPod, offers: Sequence[Offer], data_center: str | None) -> Chosen:
    """List GPUs in the user's order, each in each data centre. A network volume allows only its own data centre."""
    by_id = {offer.gpu: offer for offer in offers}
    centers: Sequence[str | None] = [data_center] if data_center else options.data_centers or [None]
    chosen: list[Candidate] = []
    refused: list[Refusal] = []
    for gpu in options.gpus:
        offer = by_id.get(gpu)
        why = _why_not(options, gpu, offer, by_id)
        if why or offer is None:
            refused.append(Refusal(gpu, why, was_asked=False))
            continue
        price = offer.usd_per_gpu_hour * options.gpu_count
        for center in centers:
            if center and offer.data_centers is not None and not offer.data_centers.get(center):
                refused.append(Refusal(_place(gpu, center), "no stock" + _hint(center, offers), was_asked=False))
            else:
                chosen.append(Candidate(gpu, center, price, offer.memory_gib))
    return Chosen(chosen, refused)


def rentals(options: RunPod, offers: Sequence[Offer], data_center: str | None) -> list[Rental]:
    """List the whole catalogue, each GPU with the reason why this target would not rent it, if there is one."""
    by_id = {offer.gpu: offer for offer in offers}
    wanted = [data_center] if data_center else options.data_centers
    found = []
    for gpu in dict.fromkeys([*options.gpus, *by_id]):
        offer = by_id.get(gpu)
        if offer is None:
            continue
        stock = offer.data_centers or {}
        centers = tuple(sorted(name for name, has in stock.items() if has and (not wanted or name in wanted)))
        why = _why_not(options, gpu, offer, by_id)
        if not why and offer.data_centers is not None and not centers:
            why = f"no stock in {', '.join(wanted)}" if wanted else "no stock"
        price = offer.usd_per_gpu_hour * options.gpu_count
        counts = tuple(range(1, offer.max_count + 1))
        named = gpu in options.gpus
        found.append(Rental(gpu, options.gpu_count, offer.memory_gib, price, centers, named, why, offer.title, counts))
    return found


def _hint(center: str, offers: Sequence[Offer]) -> str:
    """Suggest the nearest name for a data centre that no offer names: it may be misspelled."""
    known = {name for offer in offers for name in offer.data_centers or ()}
    near = difflib.get_close_matches(center, known, n=1, cutoff=0.5)
    return f", did you mean '{near[0]}'?" if near and center not in known else ""


def _why_not(options: RunPod, gpu: str, offer: Offer | None, known: dict[str, Offer]) -> str:
    if offer is None:
        near = difflib.get_close_matches(gpu, known, n=1, cutoff=0.5)
        return "RunPod has no GPU of this name" + (f", did you mean '{near[0]}'?" if near else "")
    if offer.why_not:
        return offer.why_not
    if offer.max_count == 0:
        return f"not offered in the {options.cloud} cloud"
    if offer.max_count < options.gpu_count:
        return f"its largest machine has {plural(offer.max_count, 'GPU')}, fewer than gpu_count: {options.gpu_count}"
    price = offer.usd_per_gpu_hour * options.gpu_count
    if options.max_usd_per_hour is not None and price > options.max_usd_per_hour + 1e-9:
        return f"{price:.2f} USD an hour is above max_usd_per_hour: {options.max_usd_per_hour:g}"
    return "no stock" if offer.has_stock is False else ""


def _place(gpu: str, data_center: str | None) -> str:
    return f"{gpu}, {data_center}" if data_center else gpu
