"""What `doctor` asks RunPod, and the pod that `doctor --rent` rents for a moment.

Many things about an account are not documented: what the key of a pod may do, what a price contains, how long a start
takes. Each is one finding, with the answer that was seen.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from deploy.errors import NoMachine, command
from deploy.providers import image
from deploy.providers.runpod import prices
from deploy.providers.runpod.api import ApiError, Gone, Pod, WrongKey
from deploy.providers.runpod.candidates import Candidate, choose
from deploy.providers.runpod.messages import in_words, no_candidate
from deploy.providers.runpod.rest import RestApi
from deploy.providers.runpod.retry import Asking
from deploy.providers.runpod.specification import GPU_SCHEMA, MEMORY_FIELD, fields_of
from deploy.providers.runpod.start import archive_of, min_cuda
from deploy.specs.machine import Machine, MachineSpec
from deploy.specs.names import family_name
from deploy.specs.provider import Provider
from deploy.specs.settings import RunPod, Settings
from deploy.specs.trial import OK, PROBLEM, WARNING, Finding, Funds, Offer

MOST_GPUS = 5  # GPU types that are tried, the cheapest first
CANDIDATES_MIN = 5.0  # after which no further candidate is requested
WAIT_MIN = 10.0  # until a pod answers; a target's shorter wait_min counts
UNATTENDED_MIN = 5.0  # after which the pod ends itself if this computer dies; a target's shorter one counts
LOOK_MIN = 6.0  # for the questions to a pod that answers
HANGS_MIN = 3.0  # until the pod's SSH server notices that a connection is dead
DISK_GIB = 20
BILLING = "add credit at https://console.runpod.io/user/billing"
# Fields of a request that we send, and fields that may come: schema -> names.
SENT = {
    "CreatePodRequest": (
        "name",
        "image",
        "disk",
        "ports",
        "env",
        "args",
        "cloud",
        "dataCenterIds",
        "mounts",
        "registry",
    ),
    GPU_SCHEMA: ("id", "count", "minCudaVersion"),
}
HOPED_FOR = (MEMORY_FIELD, "minVcpuCountPerGpu")
# Python finds no package in a zip file without its __init__.py.
PACKAGES = ("deploy", "deploy/pod", "deploy/pod/base", "deploy/pod/watchdog")
PROBE = (*image.BOOT, "deploy/pod/watchdog/rights.py", *(f"{each}/__init__.py" for each in PACKAGES))


class RunPodTrial:
    """Implements `deploy.specs.trial.Trial`. The pod has no volume, so nothing of the user's is touched."""

    def __init__(self, settings: Settings, rest: RestApi, asking: Asking, make: Callable[..., Provider]) -> None:
        assert isinstance(settings.target.options, RunPod)
        self.settings = settings
        self.options = settings.target.options
        self.rest = rest
        self.asking = asking
        self.make = make
        self.say: Callable[[str], None] = lambda _: None
        self.check: Callable[[Machine], None] = lambda _: None
        self._chosen: list[Candidate] = []
        self._funds_error = ""
        self._requested = 0.0
        self._provider: Provider | None = None

    # What costs nothing

    def funds(self) -> Funds | None:
        with in_words(self.settings.where):
            try:
                return self.asking.ask(self.rest.funds, self.asking.limits.look_s)
            except WrongKey:
                raise
            except ApiError as error:
                self._funds_error = str(error)
                return None

    def account(self) -> list[Finding]:
        return [self._balance(), *self._specification()]

    def offer(self) -> Offer:
        first = self._candidates()[0]
        most_min = CANDIDATES_MIN + self._wait_min + LOOK_MIN + HANGS_MIN + self._unattended_min
        return Offer(str(first), first.usd_per_hour, most_min)

    # What costs money

    def rent(self) -> Machine:
        gpus = tuple(dict.fromkeys(each.gpu for each in self._candidates()))
        options = replace(
            self.options,
            gpus=gpus,
            gpu_count=1,
            volume=None,
            disk_gib=DISK_GIB,
            min_memory_gib=None,
            wait_min=self._wait_min,
            unattended_min=self._unattended_min,
        )
        settings = replace(self.settings, target=replace(self.settings.target, options=options))
        provider = self.make(settings, candidates_s=CANDIDATES_MIN * 60)
        provider.say, provider.check = self.say, self.check
        self._provider, self._requested = provider, self.asking.clock.now()
        # No name of a target has two underscores, so no run takes this pod for its own.
        name = f"{family_name(self.settings).rstrip('-')}__doctor-{secrets.token_hex(3)}"
        return provider.acquire(MachineSpec(name, name, self.settings.root))

    def placed(self, machine: Machine) -> list[Finding]:
        seconds = self.asking.clock.now() - self._requested
        with in_words(self.settings.where):
            pod = self.asking.pod(machine.id)
        assert machine.address
        found = [
            Finding("pod", OK, f"{pod}, name of {len(machine.name)} letters"),
            Finding("time from request to SSH", OK, f"{seconds:.0f} s (hosts that were refused before included)"),
            Finding("public SSH port", OK, f"{machine.address.user}@…:{machine.address.port}"),
            self._driver(pod),
            self._price(pod),
        ]
        if machine.address.host_keys:
            return [*found, Finding("host key in the log of the pod", OK, "yes")]
        why = "no: the first connection pins the key that it receives"
        return [
            *found,
            Finding("host key in the log of the pod", WARNING, why, "set api: v2, and give the key the log"),
        ]

    def probe(self) -> bytes:
        return archive_of({name: name for name in PROBE})

    def rights(self, told: Mapping[str, Any]) -> list[Finding]:
        variables = [str(each)[:60] for each in told["variables"]][:40]
        missing = {"RUNPOD_POD_ID", "RUNPOD_API_KEY"} - set(variables)
        fix = "end machines from this computer: invoke down; and set max_hours low"
        names = ", ".join(variables) or "none"
        found = [
            Finding("RUNPOD_ variables in the pod", PROBLEM, f"{names}; missing: {', '.join(sorted(missing))}", fix)
            if missing
            else Finding("RUNPOD_ variables in the pod", OK, names)
        ]
        asked = {str(key)[:60]: str(value)[:300] for key, value in dict(told["asked"]).items()}
        found += [Finding(f"the pod's key reads {what}", OK, answer) for what, answer in list(asked.items())[:10]]
        programs = ", ".join(str(each)[:30] for each in told["programs"][:10]) or "none"
        venv = "with venv" if told["venv"] is True else "without venv"
        found.append(Finding("programs", OK, f"{programs}; Python {str(told['python'])[:20]} {venv}"))
        return [*found, Finding("runpodctl", OK, str(told["runpodctl"] or "not installed")[:300])]

    def is_gone(self, machine: Machine, limit_s: float) -> bool:
        with in_words(self.settings.where), contextlib.suppress(Gone):
            return any(not self.asking.pod(machine.id).is_alive for _ in self.asking.clock.polls(limit_s))
        return True

    def release(self, machine: Machine) -> None:
        assert self._provider
        self._provider.release(machine)

    # Findings

    @property
    def _wait_min(self) -> float:
        return min(WAIT_MIN, self.options.wait_min)

    @property
    def _unattended_min(self) -> float:
        return min(UNATTENDED_MIN, self.options.unattended_min)

    def _candidates(self) -> list[Candidate]:
        """List the cheapest NVIDIA GPUs of the whole catalogue within the target's limits. Raises NoMachine."""
        if not self._chosen:
            options, cuda = self.options, min_cuda(self.options, self.settings.project)
            with in_words(self.settings.where):
                offers = self.asking.ask(lambda: self.rest.offers((), 1, options.cloud, cuda))
            by_price = sorted(offers, key=lambda each: (each.usd_per_gpu_hour, each.gpu))
            gpus = tuple(each.gpu for each in by_price if each.gpu.startswith("NVIDIA") and each.usd_per_gpu_hour > 0)
            chosen = choose(replace(options, gpus=gpus, gpu_count=1), offers, None)
            if not chosen.candidates:
                raise no_candidate(self.settings, chosen.refusals)
            kept = list(dict.fromkeys(each.gpu for each in chosen.candidates))[:MOST_GPUS]
            self._chosen = [each for each in chosen.candidates if each.gpu in kept]
        return self._chosen

    def _balance(self) -> Finding:
        funds = self.funds()
        if funds is None:
            why = f"the key may not read it: {self._funds_error}"
            return Finding("balance", WARNING, why, "look at https://console.runpod.io/user/billing")
        limit = funds.limit_usd_per_hour
        words = f"{funds.balance_usd:.2f} USD; {funds.usd_per_hour:.2f} USD an hour bills now"
        words += "" if limit is None else f"; the account's limit is {limit:g} USD an hour"
        try:
            first = self.offer()
        except NoMachine:
            return Finding("balance", OK, words)
        hours = funds.hours(first.usd_per_hour)
        words += (
            f"; enough for {hours:.0f} hours of the cheapest machine that fits, {first.usd_per_hour:.2f} USD an hour"
        )
        return Finding("balance", PROBLEM, words, BILLING) if hours < 1 else Finding("balance", OK, words)

    def _specification(self) -> list[Finding]:
        what = "request fields in RunPod's live specification"
        try:
            told = self.asking.ask(self.rest.specification, self.asking.limits.look_s)
        except ApiError as error:
            return [Finding(what, OK, f"not compared: {error}"), *self._calls()]
        missing = [name for schema, names in SENT.items() for name in names if name not in fields_of(told, schema)]
        hoped = {name: name in fields_of(told, GPU_SCHEMA) for name in HOPED_FOR}
        memory = ", ".join(f"{name}: {'yes' if has else 'no'}" for name, has in hoped.items())
        found = Finding(what, OK, "all that are sent")
        if missing:
            found = Finding(what, PROBLEM, f"missing: {', '.join(missing)}", "set api: sdk, and report this")
        return [found, Finding("requests for memory and CPU cores", OK, memory), *self._calls()]

    def _calls(self) -> list[Finding]:
        return [Finding("limit of API calls", OK, self.rest.policy[:200] or "the API names none")]

    def _driver(self, pod: Pod) -> Finding:
        wanted = min_cuda(self.options, self.settings.project) or "any"
        return Finding(
            "CUDA of the host's driver", OK, f"{pod.cuda or 'not reported'}; {wanted} or newer was requested"
        )

    def _price(self, pod: Pod) -> Finding:
        listed = next((each.usd_per_hour for each in self._chosen if each.gpu == pod.gpu), None)
        if listed is None:
            return Finding("price", OK, f"{pod.usd_per_hour:.4f} USD an hour")
        disk = prices.running_disk(DISK_GIB)
        more = pod.usd_per_hour - listed
        words = (
            "without its disk" if abs(more) < disk / 2 else "with its disk" if abs(more - disk) < disk / 2 else "other"
        )
        figures = f"{pod.usd_per_hour:.4f} USD an hour, {listed:.4f} in the catalogue, {disk:.4f} for its disk"
        if words == "other" and more > 0:
            return Finding("price", WARNING, f"higher than listed: {figures}", f"look at {command('ps')}")
        return Finding("price", OK, f"{'differs from the list' if words == 'other' else words}: {figures}")
