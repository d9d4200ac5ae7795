"""The keys of a target on Lambda Cloud, and what the rest of the launcher asks of them."""

from __future__ import annotations

from dataclasses import dataclass

from deploy.errors import WrongUse
from deploy.pod.base.limits import LAPTOP
from deploy.specs.options import Options


@dataclass(frozen=True)
class LambdaCloud(Options):
    """A virtual machine of Lambda Cloud. It has no key to end itself: a command on your computer releases it."""

    instance_types: tuple[str, ...] = ()  # gpu_1x_a10, ...: tried in this order; empty: all that fit, cheapest first
    regions: tuple[str, ...] = ()  # us-east-1, ...; empty: any
    gpu_count: int = 1  # GPUs per machine
    min_gpu_memory_gib: float | None = None  # of each GPU
    max_usd_per_hour: float | None = None  # for the whole machine
    image_family: str | None = None  # such as lambda-stack-24-04; null: the newest Lambda Stack
    key: str | None = None  # private key file; null: a key of this project's own, made once
    user: str = "ubuntu"  # login name, as the image has it
    port: int = 22  # of the machine's SSH server
    wait_min: float = 30.0  # until a machine answers; Lambda needs 3 to 15 minutes

    provider = "deploy.providers.lambda_cloud:LambdaProvider"
    is_rented = True
    renting = {"gpus": "instance_types", "gpu_count": "gpu_count"}  # noqa: RUF012 - a dataclass field if annotated
    release = LAPTOP
    poll_s = 10
    account_keys = ("LAMBDA_API_KEY",)

    def refuse_nodes(self, nodes: int, target: str, where: str) -> None:
        """Raise WrongUse for more than one machine."""
        if nodes > 1:
            raise WrongUse(
                f"--nodes {nodes}: a run on target '{target}' has one machine: give --nodes 1, and set gpu_count: 8 in "
                f"{where} for eight GPUs"
            )
