"""Process group and collectives: the only module that starts a group, and the few collectives the app needs.

Each function also works with one process and no group, so callers need no special case.
"""

from __future__ import annotations

import atexit
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from app.errors import EXIT_FAILED, Failed, WrongUse
from app.runtime.devices import own_device, refuse_missing_gpus

GROUP_TIMEOUT_S = 600.0  # a rank that waits so long for another in a collective fails


@dataclass(frozen=True)
class World:
    """Rank and world size of this process. `device` holds its tensors; `machines` names the machine of each rank."""

    rank: int
    size: int
    device: torch.device
    machines: tuple[str, ...] = ()  # empty without a group: one machine

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def several_machines(self) -> bool:
        """Whether some ranks may see files that others do not."""
        return len({*self.machines}) > 1

    @property
    def first_of_machine(self) -> bool:
        """Whether this process writes, prints and cleans up for its machine."""
        return self.is_main or (bool(self.machines) and self.own_ranks()[0] == self.rank)

    def own_ranks(self) -> list[int]:
        """The ranks on this machine, ascending."""
        return [rank for rank, machine in enumerate(self.machines) if machine == self.machines[self.rank]]


ALONE = World(0, 1, torch.device("cpu"))


@contextmanager
def world() -> Iterator[World]:
    """Join the process group that torchrun set up in the environment; without torchrun, a world of one process.

    With GPUs: NCCL, one GPU per process. Without: gloo. Raises WrongUse for fewer GPUs than planned or than processes,
    and for several GPUs without NCCL.
    """
    refuse_missing_gpus()
    size = int(os.environ.get("WORLD_SIZE", "1"))
    device = own_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size == 1:
        yield World(0, 1, device)
        return
    if device.type == "cuda" and not dist.is_nccl_available():
        raise WrongUse(
            "this PyTorch has no NCCL, which several GPUs need: set processes: 1 (Windows), or train on Linux"
        )
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=GROUP_TIMEOUT_S))
    try:
        # GROUP_RANK numbers the machines in the order of ranks; two containers may share a host name.
        own = f"machine {os.environ.get('GROUP_RANK', '0')} ({socket.gethostname()})"
        machines = [own] * size
        dist.all_gather_object(machines, own)
        yield World(dist.get_rank(), size, device, tuple(machines))
    except (WrongUse, Failed):
        raise  # all ranks raise it, so the group can be destroyed
    except Exception:
        # Peers may wait for this rank in a collective, and destroying the group may wait for them. torchrun ends them
        # once this process has exited.
        traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_FAILED)
    finally:
        # No barrier before: a peer may be dead already.
        dist.destroy_process_group()


def leave(exit_code: int) -> NoReturn:
    """Exit without the interpreter's shutdown, which takes seconds of the time limit of a stop.

    DistributedDataParallel keeps gloo's threads alive after its group is destroyed. A thread that releases its last
    tensor during the shutdown aborts the process, after a successful run (pytorch/pytorch#179291).
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def any_rank(flag: bool, here: World) -> bool:
    """Whether `flag` is true on at least one rank; the same answer on all of them."""
    if here.size == 1:
        return flag
    answer = torch.tensor(int(flag))  # on the CPU, so no device has to synchronize
    dist.all_reduce(answer, dist.ReduceOp.MAX)
    return bool(answer)


@contextmanager
def together(here: World) -> Iterator[None]:
    """If one rank raises WrongUse inside, raise it on all ranks, with one sentence.

    Otherwise the others would wait for that rank until the group's timeout. With several machines, the sentence begins
    with the machine's name, unless all ranks raise the same one. There must be no collective inside.
    """
    refused = None
    try:
        yield
    except WrongUse as error:
        if here.size == 1:
            raise
        refused = str(error)
    if here.size == 1:
        return
    sentences: list[str | None] = [None] * here.size
    dist.all_gather_object(sentences, refused)
    rank = next((rank for rank, sentence in enumerate(sentences) if sentence is not None), None)
    if rank is not None:
        everywhere = not here.several_machines or len({*sentences}) == 1
        raise WrongUse(f"{sentences[rank]}" if everywhere else f"{here.machines[rank]}: {sentences[rank]}")


def mean(value: Tensor, here: World) -> Tensor:
    """The mean over ranks of a tensor with the same shape on all of them."""
    return value if here.size == 1 else total(value, here) / here.size


def share(rows: NDArray[Any], here: World) -> NDArray[Any]:
    """This rank's contiguous shard of `rows`: each row on exactly one rank, sizes equal to within one row."""
    return np.array_split(rows, here.size)[here.rank]


@torch.no_grad()
def buffers_from_main(module: nn.Module, here: World) -> None:
    """Copy the floating-point buffers (BN statistics) of rank 0 to all ranks, bit for bit."""
    if here.size > 1:
        flat = averages_of(module)
        dist.broadcast(flat, src=0)
        put_averages(module, flat)


def averages_of(module: nn.Module) -> Tensor:
    """All floating-point buffers of a module, copied into one flat tensor."""
    buffers = [buffer.flatten() for buffer in module.buffers() if buffer.is_floating_point()]
    return torch.cat(buffers) if buffers else torch.zeros(0)


@torch.no_grad()
def put_averages(module: nn.Module, flat: Tensor) -> None:
    """The reverse of `averages_of`."""
    buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    if buffers:
        parts = flat.split([b.numel() for b in buffers])
        torch._foreach_copy_(buffers, [part.view_as(b) for b, part in zip(buffers, parts, strict=True)])


@torch.no_grad()
def gather_rows(local: Tensor, here: World) -> Tensor:
    """Concatenate [n_r, …] of all ranks in rank order to [sum n_r, …]; n_r may differ and may be 0. No gradient."""
    if here.size == 1:
        return local
    count = torch.tensor([len(local)], device=local.device)
    counts = [torch.zeros_like(count) for _ in range(here.size)]
    dist.all_gather(counts, count)
    sizes = [int(c) for c in counts]
    # Unequal shapes would hang or fail, so each rank pads to the largest number of rows.
    padded = local.new_zeros((max(sizes), *local.shape[1:]))
    padded[: len(local)] = local
    parts = [torch.empty_like(padded) for _ in range(here.size)]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


# Its name since torch 2.13; the old one warns there.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@torch.no_grad()
def gather_packed(parts: Sequence[Tensor], here: World) -> Callable[[], list[Tensor]]:
    """Start to gather tensors [n, …], n equal on all ranks; the returned function waits and gives [W * n, …] each.

    Sends all tensors as bytes in one message. Waiting blocks the device, not the host.
    """
    if here.size == 1:
        return lambda: list(parts)
    rows = [part.contiguous().view(len(part), -1).view(torch.uint8) for part in parts]
    packed = torch.cat(rows, 1)  # [n, bytes]
    whole = packed.new_empty(here.size * len(packed), packed.shape[1])
    work = _all_gather(whole, packed, async_op=True)

    def wait() -> list[Tensor]:
        work.wait()
        columns = whole.split([row.shape[1] for row in rows], 1)
        return [c.contiguous().view(p.dtype).view(-1, *p.shape[1:]) for c, p in zip(columns, parts, strict=True)]

    return wait


def gather_batch(local: Tensor, here: World) -> Tensor:
    """Concatenate [B, …] of all ranks in rank order to [W * B, …]; B must be equal on all ranks.

    Each rank gets the gradient of its own part, summed over all ranks and multiplied by the world size. data_parallel
    later takes the mean over ranks, which then equals the sum.
    """
    return local if here.size == 1 else _GatherBatch.apply(local, here)


class _GatherBatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, here: World) -> Tensor:
        ctx.here = here
        parts = [torch.empty_like(local, memory_format=torch.contiguous_format) for _ in range(here.size)]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        own = total(grad, ctx.here).chunk(ctx.here.size)[ctx.here.rank]
        return own * ctx.here.size, None


def total(value: Tensor, here: World) -> Tensor:
    """The sum over ranks of a tensor with the same shape on all of them. No gradient."""
    return _reduced(value, dist.ReduceOp.SUM, here)


def greatest(value: Tensor, here: World) -> Tensor:
    """The elementwise maximum over ranks of a tensor with the same shape on all of them. No gradient."""
    return _reduced(value, dist.ReduceOp.MAX, here)


def least(value: Tensor, here: World) -> Tensor:
    """The elementwise minimum over ranks of a tensor with the same shape on all of them. No gradient."""
    return _reduced(value, dist.ReduceOp.MIN, here)


def _reduced(value: Tensor, how: Any, here: World) -> Tensor:
    if here.size == 1:
        return value.detach()
    result = value.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(result, how)
    return result


@torch.no_grad()
def rows_to_main(local: Tensor, here: World) -> Tensor | None:
    """Concatenate [n_r, …] of all ranks in rank order to [sum n_r, …], in rank 0's CPU memory; None on the others.

    Ranks send in turn, straight into their rows of the result, so rank 0 holds no more than the result. A single
    process on the CPU gets its own tensor back, not a copy.
    """
    if here.size == 1:
        return local.cpu()
    sizes = from_all(len(local), here)
    if not here.is_main:
        if len(local):
            dist.send(local.cpu().contiguous(), dst=0)
        return None
    whole = torch.empty((sum(sizes), *local.shape[1:]), dtype=local.dtype)
    parts = whole.split(sizes)
    parts[0].copy_(local)
    for rank, part in enumerate(parts[1:], start=1):
        if len(part):
            dist.recv(part, src=rank)
    return whole


@torch.no_grad()
def rows_from_main(whole: Tensor | None, into: Tensor, here: World) -> None:
    """The reverse of `rows_to_main`: send each rank its rows of rank 0's `whole`, in pieces; it holds no others."""
    if here.size == 1:
        assert whole is not None
        into.copy_(whole)
        return
    sizes = from_all(len(into), here)
    if here.is_main:
        assert whole is not None
        parts = whole.split(sizes)
        into.copy_(parts[0])
        for rank, part in enumerate(parts[1:], start=1):
            for piece in _pieces(part):
                dist.send(piece.to("cpu", into.dtype).contiguous(), dst=rank)
    else:
        for piece in _pieces(into):
            coming = torch.empty_like(piece, device="cpu", memory_format=torch.contiguous_format)
            dist.recv(coming, src=0)
            piece.copy_(coming)


def _pieces(rows: Tensor) -> Iterable[Tensor]:
    """Split rows into views of about 64 MiB, which depend only on their number and shape; nothing for no rows."""
    a_row = max(1, rows[:1].numel() * 8)  # counted as 8-byte numbers: both sides split alike, whatever the type
    return rows.split(max(1, 2**26 // a_row)) if len(rows) else ()


@torch.no_grad()
def swap_rows(outgoing: Sequence[Tensor], sizes: Sequence[int], here: World) -> Tensor:
    """Send rows [n_r, …] to each rank r, and return [sum sizes, …]: `sizes[r]` rows from each rank r, in rank order."""
    if here.size == 1:
        return outgoing[0]
    result = outgoing[0].new_empty((sum(sizes), *outgoing[0].shape[1:]))
    dist.all_to_all_single(result, torch.cat(list(outgoing)), list(sizes), [len(rows) for rows in outgoing])
    return result


def pass_on(outgoing: Tensor, incoming: Tensor, here: World) -> Callable[[], None]:
    """Start sending `outgoing` to the next rank and receiving `incoming` from the previous one, in a ring.

    The returned function waits for both. Both sides must know the sizes; empty tensors are not sent. Needs at least
    two ranks.
    """
    transfers = []
    if outgoing.numel():
        transfers.append(dist.P2POp(dist.isend, outgoing, (here.rank + 1) % here.size))
    if incoming.numel():
        transfers.append(dist.P2POp(dist.irecv, incoming, (here.rank - 1) % here.size))
    started = dist.batch_isend_irecv(transfers) if transfers else []

    def wait() -> None:
        for transfer in started:
            transfer.wait()

    return wait


T = TypeVar("T")


def from_main(value: T, here: World) -> T:
    """Broadcast rank 0's value (any picklable object)."""
    if here.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def from_all(value: T, here: World) -> list[T]:
    """Gather the values of all ranks, in rank order, on every rank (any picklable objects)."""
    values = [value] * here.size
    if here.size > 1:
        dist.all_gather_object(values, value)
    return values


def copied_from_main(value: Any, here: World) -> Any:
    """Broadcast rank 0's dicts and lists of tensors and plain values; each rank gets its own tensors, in CPU memory.

    Tensors are sent one by one as bytes: besides the result a rank holds at most one of them.
    """
    given: list[Tensor] = []

    def shape(tensor: Tensor) -> Tensor:
        given.append(tensor)
        return tensor.to("meta")

    def copied(shape: Tensor) -> Tensor:
        tensor = torch.empty_like(shape, device="cpu")
        if here.is_main:
            tensor.copy_(given.pop(0))
        if here.size > 1 and tensor.numel():
            dist.broadcast(torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()), src=0)
        return tensor

    return _each_tensor(from_main(_each_tensor(value, shape), here), copied)


def _each_tensor(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Copy dicts and lists, and replace each tensor, in order, by `change` of it."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _each_tensor(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_each_tensor(item, change) for item in value]
    return value
