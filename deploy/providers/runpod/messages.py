"""Error messages of the provider, and patterns that match RunPod's own texts."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence

from deploy.errors import DeployError, NoMachine, StepFailed, WrongUse, command
from deploy.providers.runpod.api import (
    ApiError,
    BadRequest,
    Forbidden,
    NoBalance,
    TooMany,
    Unclear,
    Unreachable,
    WrongKey,
)
from deploy.providers.runpod.candidates import Refusal
from deploy.providers.runpod.key import WHERE_TO_GET
from deploy.providers.runpod.signs import CLOSED_PORT, EMPTY_LOG
from deploy.specs.settings import Settings

# RunPod has no error code for missing capacity: these are its texts, as users reported them.
ROOM = re.compile(
    r"no (longer )?(any )?(instances|machines|capacity|stock)|not? enough|does not have the resources|"
    r"no .*available|unavailable|out of (stock|capacity)|could not be placed|different machine",
    re.IGNORECASE,
)
ONLINE = "check that this computer is online, and check HTTPS_PROXY and RUNPOD_API_BASE_URL"
IN_WORDS: tuple[tuple[type[ApiError], type[DeployError], str, str | None], ...] = (
    (WrongKey, WrongUse, "RunPod does not accept the API key", WHERE_TO_GET),
    (Forbidden, WrongUse, "the API key has no permission for this", WHERE_TO_GET),
    (NoBalance, NoMachine, "RunPod: the balance is too low", "add credit at https://console.runpod.io/user/billing"),
    (Unreachable, NoMachine, "RunPod cannot be reached", ONLINE),
    (Unclear, NoMachine, "RunPod's API does not answer", None),
    (ApiError, StepFailed, "RunPod", None),
)


def no_candidate(settings: Settings, refusals: Sequence[Refusal], what: str = "machine") -> NoMachine:
    """Build the error when every candidate was refused. A broken rule fails every candidate, missing capacity one."""
    target, where = settings.target.name, settings.where
    asked = [refusal for refusal in refusals if refusal.was_asked]
    if asked and all(refusal.by_rule for refusal in asked):
        message = f"RunPod refused every candidate of target '{target}'; the request may be wrong: {asked[-1].why}"
        following = f"look at {where}"
    elif asked and all(refusal.is_forbidden for refusal in asked):
        message = f"RunPod forbids each request for target '{target}': the API key may have no right to rent"
        following = WHERE_TO_GET
    else:
        message = f"RunPod has no {what} for target '{target}' now"
        following = f"{command(f'deploy --on {target}')}   (later, or with more gpus or data_centers in {where})"
    why = [refusal.why for refusal in refusals]
    if any(CLOSED_PORT in each for each in why):
        again = command(f"deploy --on {target}")
        following = f"check that this network's firewall allows TCP to high ports, then: {again}"
    elif any(EMPTY_LOG in each for each in why):
        following = f"{command(f'deploy --on {target}')}   (again; silent_s: 180 in {where} waits longer for a log)"
    if any("max_usd_per_hour" in each for each in why):
        following = f"raise max_usd_per_hour or name other gpus in {where}, then: {command(f'deploy --on {target}')}"
    return NoMachine(message, evidence=[str(refusal) for refusal in refusals], next_command=following)


def cannot_pull(settings: Settings, image: str, why: str) -> NoMachine:
    """Build the error for an image that cannot be pulled. Other candidates would have to pull the same image."""
    return NoMachine(
        f"RunPod cannot pull the image {image}: {why}",
        next_command=f"set another image: in {settings.where}, or registry: for a private one",
    )


def could_not_give_back(what: str, error: ApiError, page: str = "pods") -> StepFailed:
    return StepFailed(
        f"{what} could not be released and still bills: {error}",
        next_command=f"terminate it at https://console.runpod.io/{page}",
    )


@contextlib.contextmanager
def in_words(where: str) -> Iterator[None]:
    """Translate RunPod's errors into errors that tell the user what to do. Raises WrongUse, NoMachine or StepFailed."""
    try:
        yield
    except BadRequest as error:
        said = f"RunPod rejects the request as invalid: {error.detail}"
        raise WrongUse(said, evidence=error.errors, next_command=f"look at {where}") from error
    except TooMany as error:
        raise NoMachine(f"RunPod's rate limit is exhausted for {error.retry_after_s:.0f} s: {error}") from error
    except ApiError as error:
        _, raised, words, fix = next(each for each in IN_WORDS if isinstance(error, each[0]))
        raise raised(f"{words}: {error}", next_command=fix) from error
