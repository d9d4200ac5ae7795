"""Retry requests with backoff, within the rate limit, and without creating anything twice."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from deploy.pod.base.retry import API_PAUSES_S, endless
from deploy.providers.rented import Clock, Listed, readable
from deploy.providers.runpod.api import (
    SHOWS_S,
    Api,
    ApiError,
    Cluster,
    Conflict,
    Forbidden,
    Gone,
    Pod,
    Refused,
    TooMany,
    Unclear,
    Unreachable,
)
from deploy.providers.runpod.cache import Notes
from deploy.providers.runpod.messages import could_not_give_back
from deploy.providers.runpod.ratelimit import Limits

T = TypeVar("T")


N = TypeVar("N", bound=Pod | Cluster)
F = TypeVar("F", bound=Listed)


@dataclass(frozen=True)
class Asking:
    api: Api
    clock: Clock
    limits: Limits
    notes: Notes
    say: Callable[[str], None]
    _reported: set[str] = field(default_factory=set)
    _made: dict[str, float] = field(default_factory=dict)  # id -> when this command created it

    def ask(self, call: Callable[[], T], patience_s: float | None = None, *, bills: bool = False) -> T:
        """Retry a call that is safe to repeat. Raises the last error after `patience_s`.

        `bills`: the call concerns something that was created, so it also waits for a lost network.
        """
        began, patience_s = self.clock.now(), self.limits.patience_s if patience_s is None else patience_s
        waits = endless(API_PAUSES_S)
        while True:
            try:
                return call()
            except (TooMany, Unclear) as error:
                impatient = isinstance(error, Unreachable) and not bills
                limit_s = min(patience_s, self.limits.unreachable_s) if impatient else patience_s
                self._wait(error, next(waits), began + limit_s)

    def pods(self, patience_s: float | None = None, *, bills: bool = False) -> list[Pod]:
        """List the account's pods. One that this computer requested counts also if RunPod's list lacks it."""
        listed = self.told(self.ask(self.api.pods, patience_s, bills=bills))
        return [self.as_named(pod) for pod in [*listed, *self._unlisted({pod.id for pod in listed}, patience_s)]]

    def _unlisted(self, listed: set[str], patience_s: float | None) -> Iterator[Pod]:
        """Yield pods that exist although the list lacks them: a list that is short ends no run, and rents no second."""
        for name, pod_id in self.notes.handed_out().items():
            if pod_id in listed:
                continue
            try:
                pod = self.ask(partial(self.api.get, pod_id), patience_s, bills=True)
            except Gone:
                self.notes.done_with(name)  # so that no later command asks again
            except (Forbidden, Refused):  # of another account, perhaps
                continue
            else:
                yield from [pod] if pod.is_alive or pod.is_stopped else []

    def told(self, found: Sequence[F], so: str = "it may bill") -> list[F]:
        return readable(found, self._reported, self.say, so)

    def pod(self, pod_id: str, patience_s: float | None = None) -> Pod:
        return self.as_named(self.ask(lambda: self.api.get(pod_id), patience_s, bills=True))

    def create(self, make: Callable[[], N], look: Callable[[], N | None]) -> tuple[N, bool]:
        """Create something; return it, and whether a twin may appear from a request that is carried out late.

        Names are not unique, and there is no idempotency key: after no answer, `look` searches for it before a retry.
        A retry may be refused because the first request took the last machine: that error has `may_exist`. Raises
        ApiError of a refusal, and Unclear after no answer, also if nothing can be sent by then.
        """
        waits, began = endless(API_PAUSES_S), self.clock.now()
        unclear: Unclear | None = None
        while True:
            refused: ApiError | None = None
            try:
                made = make()
                self._made[made.id] = self.clock.now()
                return made, unclear is not None
            except (TooMany, Unclear) as error:
                if isinstance(error, Unclear) and not isinstance(error, Unreachable):
                    unclear = error
                impatient = isinstance(error, Unreachable) and unclear is None
                limit_s = self.limits.unreachable_s if impatient else self.limits.patience_s
                try:
                    self._wait(error, next(waits), began + limit_s)
                except ApiError as over:
                    refused = over
            except ApiError as error:
                refused = error
            try:
                found = look() if unclear else None
            except ApiError as error:
                raise Unclear(f"{unclear}; and then: {error}") from error
            if found:
                return found, True
            if refused:
                raise _after(unclear, refused)

    def terminate(self, pod_id: str, what: str) -> None:
        """End a pod. A pod that is gone is success; one between two states (Conflict) is retried. Raises StepFailed."""
        if not pod_id:
            raise could_not_give_back(what, ApiError("RunPod's list has no id of it"))
        waits, until = endless(API_PAUSES_S), self.clock.now() + self.limits.look_s
        try:
            while True:
                try:
                    self.ended(pod_id, lambda: self.api.terminate(pod_id))
                    break
                except Conflict:
                    wait_s = next(waits)
                    if self.pod(pod_id).status == "TERMINATED":
                        break
                    if self.clock.now() + wait_s > until:
                        raise
                    self.clock.sleep(wait_s)
        except Gone:
            pass
        except ApiError as error:
            raise could_not_give_back(what, error) from error
        self.notes.forget(pod_id)

    def ended(self, id: str, end: Callable[[], None]) -> None:
        """Send a request that ends something. Raises Gone; of what is new, only once the API must know it."""
        waits, until = endless(API_PAUSES_S), self._made.get(id, float("-inf")) + SHOWS_S
        while True:
            try:
                return self.ask(end, bills=True)
            except Gone:
                wait_s = next(waits)
                if self.clock.now() + wait_s > until:
                    raise
                self.clock.sleep(wait_s)

    def last_lines(self, pod: Pod) -> list[str]:
        with contextlib.suppress(ApiError):
            return [line.text for line in self.api.log(pod.id, None, 20)][-5:]
        return []

    def as_named(self, one: N) -> N:
        """Return it under the name that it was requested with: on RunPod's pages anyone can change it."""
        name = self.notes.name_of(one)
        if name == one.name:
            return one
        if one.id not in self._reported:
            self._reported.add(one.id)
            self.say(f"{one.id} was renamed on RunPod's pages: {name} is called {one.name} there")
        return replace(one, name=name)

    def _wait(self, error: TooMany | Unclear, wait_s: float, until: float) -> None:
        wait_s = error.retry_after_s if isinstance(error, TooMany) else wait_s
        if self.clock.now() + wait_s > until:
            raise error
        self.say(f"{error}; trying again in {wait_s:.0f} s")
        self.clock.sleep(wait_s)


def _after(unclear: Unclear | None, refused: ApiError) -> ApiError:
    """Return the error of a creation. After a request without an answer, it tells that something may exist."""
    if unclear is None or refused is unclear:
        return refused
    if isinstance(refused, Refused | Forbidden):
        refused.may_exist = True
        return refused
    return Unclear(f"{unclear}; and then: {refused}")


def of_family(found: Sequence[N], family: str, *, exactly: bool = False) -> list[N]:
    """List the living members of a family: running ones first, then the oldest. A longer word is another family."""
    begin = family if family.endswith("-") else f"{family}-"
    mine = [
        one for one in found if one.is_alive and (one.name == family or (not exactly and one.name.startswith(begin)))
    ]
    return sorted(mine, key=lambda one: (one.status != "RUNNING", one.created or 0.0, one.id))
