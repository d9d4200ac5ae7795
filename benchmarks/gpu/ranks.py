"""Check the collectives of training between all GPUs of this machine, and measure how fast they are.

    torchrun --standalone --nproc-per-node=N -m benchmarks.gpu.ranks NUMBERS      what the check starts; prints JSON

Letters: W ranks, B images per rank, D size.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.runtime import dist
from app.runtime.data_parallel import data_parallel
from app.runtime.dist import World
from benchmarks.gpu.rig import Rig
from benchmarks.gpu.running import Missing, Records, Wrong

GRADIENTS = 43_590_848  # numbers: those of IResNet50
MOST = 8


def ranks(rig: Rig) -> Records:
    """What every rank gets from the others against the right numbers, then rates. On a CPU two ranks over gloo."""
    count = 2 if rig.on_cpu else min(MOST, torch.cuda.device_count())
    if count < 2:
        raise Missing("two GPUs: one shows nothing of what happens between them")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    hidden = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} if rig.on_cpu else {}
    command = [*torchrun, "-m", "benchmarks.gpu.ranks", str(rig.sized(GRADIENTS, 100_000))]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        env={**os.environ, **hidden},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if re.match(r"[\w.]*(Error|Wrong): ", line)] or [
            done.stderr[-300:]
        ]
        raise Wrong(f"{count} ranks: {said[0]}")
    yield json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


def main(numbers: int) -> int:
    """Run one rank; the first prints the record. Raises Wrong."""
    with dist.world() as here:
        for name, check in CHECKS.items():
            if dist.any_rank(not check(here), here):
                raise Wrong(f"{name} gives wrong numbers on some rank")
        record = {"ranks": here.size, "device": here.device.type, "right": list(CHECKS), **rates(here, numbers)}
        if here.is_main:
            print(json.dumps(record), flush=True)
    return 0


def packed(here: World) -> bool:
    """Keys, rows and fp16 embeddings of all ranks, in one message of bytes."""
    parts = [[torch.full((4, 128), rank + 0.5), torch.arange(4) + 4 * rank, torch.full((4, 8), rank).half()]
             for rank in range(here.size)]  # fmt: skip
    found = dist.gather_packed([part.to(here.device) for part in parts[here.rank]], here)()
    wanted = [torch.cat(column) for column in zip(*parts, strict=True)]
    return all(torch.equal(a.cpu(), b) for a, b in zip(found, wanted, strict=True))


def unequal(here: World) -> bool:
    """Rows of which each rank has another number, and the first none."""
    found = dist.gather_rows(torch.full((here.rank, 3), float(here.rank), device=here.device), here)
    wanted = [torch.full((rank, 3), float(rank)) for rank in range(here.size)]
    return torch.equal(found.cpu(), torch.cat(wanted))


def numbers_of_a_step(here: World) -> bool:
    """The largest and the sum over ranks, of device tensors, and the stop flag over gloo."""
    own = torch.tensor([1.0, here.rank], device=here.device)
    sums = [here.size, here.size * (here.size - 1) / 2]
    right = dist.greatest(own, here).tolist() == [1.0, here.size - 1] and dist.total(own, here).tolist() == sums
    return right and dist.any_rank(here.rank == here.size - 1, here) and not dist.any_rank(False, here)


def gradients(here: World) -> bool:
    """Gradients through gather_batch and DistributedDataParallel: those of the whole batch on one rank.

    Each rank adds its part to the loss, as of its class centres: here equal parts.
    """
    torch.manual_seed(0)
    layer, batch = torch.nn.Linear(8, 8).to(here.device), torch.randn(4 * here.size, 8, device=here.device)
    layer(batch).square().mean().backward()
    wanted, layer.weight.grad = layer.weight.grad, None
    own = batch.chunk(here.size)[here.rank]
    parallel = data_parallel(layer, here)
    dist.gather_batch(parallel(own), here).square().mean().div(here.size).backward()
    return torch.allclose(layer.weight.grad, wanted, rtol=1e-3, atol=1e-6)


def ring(here: World) -> bool:
    """A block passed on to the next rank, as the search does."""
    incoming = torch.empty(16, 4, device=here.device)
    dist.pass_on(torch.full((16, 4), float(here.rank), device=here.device), incoming, here)()
    return bool((incoming == (here.rank - 1) % here.size).all())


def swapped(here: World) -> bool:
    """Rows for each rank, of another number for each, as embeddings are exchanged."""
    outgoing = [torch.full((to + 1, 3), float(here.rank), device=here.device) for to in range(here.size)]
    found = dist.swap_rows(outgoing, [here.rank + 1] * here.size, here)
    return torch.equal(found[:, 0].cpu(), torch.arange(here.size).repeat_interleave(here.rank + 1).float())


def tables(here: World) -> bool:
    """Class centres of all ranks to the first one's CPU and back, and a checkpoint from it."""
    own = torch.full((here.rank + 1, 3), float(here.rank), device=here.device)
    whole, back = dist.rows_to_main(own, here), torch.zeros_like(own)
    dist.rows_from_main(whole, back, here)
    content = {"a": [torch.arange(5), "word"]} if here.is_main else None
    copied = dist.copied_from_main(content, here)
    return torch.equal(back, own) and copied["a"][0].tolist() == list(range(5)) and copied["a"][1] == "word"


def averages(here: World) -> bool:
    """BN's averages of the first rank on all."""
    bn = torch.nn.BatchNorm1d(4).to(here.device)
    bn.running_mean.fill_(here.rank + 1)
    dist.buffers_from_main(bn, here)
    return bool((bn.running_mean == 1).all())


CHECKS: dict[str, Callable[[World], bool]] = {
    "packed": packed,
    "swapped": swapped,
    "tables": tables,
    "averages": averages,
    "unequal": unequal,
    "numbers_of_a_step": numbers_of_a_step,
    "gradients": gradients,
    "ring": ring,
}


def rates(here: World, numbers: int) -> dict[str, Any]:
    """Milliseconds to sum all gradients, in fp32 and in bf16, and to gather the keys of a batch."""
    keys, rows = torch.randn(128, 128, device=here.device), torch.arange(128, device=here.device)
    whole = torch.randn(numbers, device=here.device)
    half = whole.bfloat16()
    return {
        "gradients_fp32_ms": milliseconds(lambda: dist.total(whole, here), here),
        "gradients_bf16_ms": milliseconds(lambda: dist.total(half, here), here),
        "keys_ms": milliseconds(lambda: dist.gather_packed([keys, rows], here)()[0], here),
    }


def milliseconds(work: Callable[[], Tensor], here: World) -> float:
    """The least time of a call among ten; reading a number waits for the device."""
    times = []
    for _ in range(12):
        dist.any_rank(False, here)  # all begin together
        started = time.perf_counter()
        float(work().flatten()[0])
        times.append(time.perf_counter() - started)
    return 1000 * min(times[2:])


if __name__ == "__main__":
    dist.leave(main(int(sys.argv[1])))
