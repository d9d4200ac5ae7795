"""Processes: the only place that starts a process group, and the few collectives the app needs.

Everything works with one process and no process group, so nothing else asks whether it is distributed.
"""

from __future__ import annotations

import atexit
import inspect
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
from app.runtime.devices import own_device


@dataclass(frozen=True)
class World:
    """Who this process is. `device` is where its tensors live, `machines` names the machine of each rank."""

    rank: int
    size: int
    device: torch.device
    machines: tuple[str, ...] = ()  # empty without a group: then there is one

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def several_machines(self) -> bool:
        """Whether there may be files that one rank sees and another does not."""
        return len({*self.machines}) > 1

    @property
    def first_of_machine(self) -> bool:
        """Whether this is the process that writes, speaks and tidies up on its machine."""
        return self.is_main or (bool(self.machines) and self.own_ranks()[0] == self.rank)

    def own_ranks(self) -> list[int]:
        """The ranks on this machine, ascending."""
        return [rank for rank, machine in enumerate(self.machines) if machine == self.machines[self.rank]]


ALONE = World(0, 1, torch.device("cpu"))


def is_first() -> bool:
    """Whether this is the process that speaks, also before and after there is a group of them."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def world(timeout_min: float = 10) -> Iterator[World]:
    """Join the group that torchrun announced in the environment; without torchrun, be the only process.

    NCCL with one GPU a process where there are GPUs, else gloo.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    device = own_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size == 1:
        yield World(0, 1, device)
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(minutes=timeout_min))
    try:
        # torchrun counts machines as its ranks are counted; a host's name alone may be that of another container.
        own = f"machine {os.environ.get('GROUP_RANK', '0')} ({socket.gethostname()})"
        machines = [own] * size
        dist.all_gather_object(machines, own)
        yield World(dist.get_rank(), size, device, tuple(machines))
    except (WrongUse, Failed):
        raise  # all ranks raise it: they leave in order
    except Exception:
        # Peers may wait for this rank inside a collective, and destroying the group may wait for them. torchrun ends
        # them once this process is gone.
        traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_FAILED)
    finally:
        # A peer may be dead already; there is nothing left to agree on.
        dist.destroy_process_group()


def leave(exit_code: int) -> NoReturn:
    """End this process without the interpreter's shutdown, which takes seconds of what a stop may take.

    DistributedDataParallel keeps gloo's threads alive after its group is destroyed. One that lets go of its last tensor
    while the interpreter shuts down aborts the process, after a run that went well (pytorch/pytorch#179291).
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def any_rank(flag: bool, here: World) -> bool:
    """Whether `flag` is true on at least one rank; the same answer on all of them."""
    if here.size == 1:
        return flag
    answer = torch.tensor(int(flag))  # on the CPU: no device has to wait for it
    dist.all_reduce(answer, dist.ReduceOp.MAX)
    return bool(answer)


@contextmanager
def together(here: World) -> Iterator[None]:
    """What is refused inside on one rank is refused on all of them, in one sentence: all raise WrongUse.

    Without this the others would wait for the one that left until the group's timeout. Where it is one machine of
    several that has something to refuse, the sentence begins with its name. There must be no collective inside.
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


class Late:
    """Numbers on their way from the device to the host."""

    def __init__(self, numbers: Tensor) -> None:
        self.there: torch.cuda.Event | None = None
        if numbers.device.type == "cuda":
            self.numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self.numbers.copy_(numbers, non_blocking=True)
            self.there = torch.cuda.Event()
            self.there.record()
        else:
            self.numbers = numbers.clone()

    def read(self) -> list[float]:
        """The numbers; waits until the device has come so far."""
        if self.there is not None:
            self.there.synchronize()
        values: list[float] = self.numbers.tolist()
        return values


def mean(value: Tensor, here: World) -> Tensor:
    """The mean over ranks of a tensor of one shape."""
    if here.size == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / here.size


def share(rows: NDArray[Any], here: World) -> NDArray[Any]:
    """This rank's contiguous share of `rows`: every row on exactly one rank, shares equal to within one row."""
    return np.array_split(rows, here.size)[here.rank]


@torch.no_grad()
def average_buffers(module: nn.Module, here: World) -> None:
    """Give every rank the mean of the floating-point buffers (BN statistics), so that the copies stay the same."""
    if here.size > 1:
        put_averages(module, mean(averages_of(module), here))  # one message instead of dozens


@torch.no_grad()
def buffers_from_main(module: nn.Module, here: World) -> None:
    """Give every rank the floating-point buffers (BN statistics) of rank 0, to the bit."""
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
    # Ranks with unequal shapes would hang or fail, so everyone sends as many rows as the longest.
    padded = local.new_zeros((max(sizes), *local.shape[1:]))
    padded[: len(local)] = local
    parts = [torch.empty_like(padded) for _ in range(here.size)]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


@torch.no_grad()
def gather_packed(parts: Sequence[Tensor], here: World) -> Callable[[], list[Tensor]]:
    """Start to gather tensors [n, …] of all ranks, n the same everywhere; call what is returned for [W * n, …] each.

    They travel as the bytes that they are, in one message. The call makes the device wait, not the host.
    """
    if here.size == 1:
        return lambda: list(parts)
    rows = [part.contiguous().view(len(part), -1).view(torch.uint8) for part in parts]
    packed = torch.cat(rows, 1)  # [n, bytes]
    whole = packed.new_empty(here.size * len(packed), packed.shape[1])
    work = dist.all_gather_into_tensor(whole, packed, async_op=True)

    def wait() -> list[Tensor]:
        work.wait()
        columns = whole.split([row.shape[1] for row in rows], 1)
        return [c.contiguous().view(p.dtype).view(-1, *p.shape[1:]) for c, p in zip(columns, parts, strict=True)]

    return wait


def gather_batch(local: Tensor, here: World) -> Tensor:
    """Concatenate [B, …] of all ranks in rank order to [W * B, …]; B must be the same everywhere.

    The gradient that goes back to a rank is that of its own part, summed over all ranks that used it and multiplied
    by their number: the mean over ranks, which data_parallel takes of what is computed from it, is then the sum.
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
    """The sum over ranks of a tensor of one shape. No gradient."""
    return _reduced(value, dist.ReduceOp.SUM, here)


def greatest(value: Tensor, here: World) -> Tensor:
    """The maximum over ranks, number by number, of a tensor of one shape. No gradient."""
    return _reduced(value, dist.ReduceOp.MAX, here)


def _reduced(value: Tensor, how: Any, here: World) -> Tensor:
    if here.size == 1:
        return value.detach()
    result = value.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(result, how)
    return result


@torch.no_grad()
def rows_to_main(local: Tensor, here: World) -> Tensor | None:
    """[sum n_r, …] from [n_r, …] of all ranks, in rank order, in rank 0's CPU memory; None on the others.

    Ranks send one after the other, to where their rows belong: rank 0 never holds more than the result. A single
    process on the CPU gets its own tensor back, not a copy.
    """
    if here.size == 1:
        return local.cpu()
    sizes = [torch.zeros(1, dtype=torch.long) for _ in range(here.size)]
    dist.all_gather(sizes, torch.tensor([len(local)]))
    if not here.is_main:
        if len(local):
            dist.send(local.cpu().contiguous(), dst=0)
        return None
    whole = torch.empty((int(torch.cat(sizes).sum()), *local.shape[1:]), dtype=local.dtype)
    parts = whole.split([int(size) for size in sizes])
    parts[0].copy_(local)
    for rank, part in enumerate(parts[1:], start=1):
        if len(part):
            dist.recv(part, src=rank)
    return whole


@torch.no_grad()
def rows_from_main(whole: Tensor | None, into: Tensor, here: World) -> None:
    """The reverse of `rows_to_main`: each rank gets its rows of rank 0's `whole`, in pieces, and holds no others."""
    if here.size == 1:
        assert whole is not None
        into.copy_(whole)
        return
    sizes = [torch.zeros(1, dtype=torch.long) for _ in range(here.size)]
    dist.all_gather(sizes, torch.tensor([len(into)]))
    if here.is_main:
        assert whole is not None
        parts = whole.split([int(size) for size in sizes])
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
    """Views of some 64 MiB each, by the number and shape of the rows alone; none of no rows."""
    a_row = max(1, rows[:1].numel() * 8)  # as if of 8 bytes: both sides count alike, whatever the type
    return rows.split(max(1, 2**26 // a_row)) if len(rows) else ()


def pass_on(outgoing: Tensor, incoming: Tensor, here: World) -> Callable[[], None]:
    """Start sending `outgoing` to the next rank and receiving `incoming` from the one before; call what is returned to
    wait for both. Their sizes must be known on both sides; nothing is sent of an empty tensor. Needs two ranks.
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
    """Rank 0's value, on every rank (any picklable object)."""
    if here.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def from_all(value: T, here: World) -> list[T]:
    """The value of every rank in rank order, on every rank (any picklable object)."""
    values = [value] * here.size
    if here.size > 1:
        dist.all_gather_object(values, value)
    return values


def copied_from_main(value: Any, here: World) -> Any:
    """Rank 0's dicts and lists of tensors and plain values, on every rank, each with tensors of its own in CPU memory.

    Tensors travel one by one as the bytes they are: beside the result no rank holds more than one of them.
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
    """The same dicts and lists with every tensor changed, in their order."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _each_tensor(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_each_tensor(item, change) for item in value]
    return value


def data_parallel(module: nn.Module, here: World) -> nn.Module:
    """The module with its gradients averaged over ranks; itself when alone. Buffers stay with `average_buffers`."""
    if here.size == 1:
        return module
    devices = [here.device.index] if here.device.type == "cuda" else None
    wrapper = nn.parallel.DistributedDataParallel
    # The name of this argument until torch 2.11, and since.
    names = inspect.signature(wrapper.__init__).parameters
    sync = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    return wrapper(module, device_ids=devices, gradient_as_bucket_view=True, **{sync: False})


def gradients_meet(module: nn.Module, *, now: bool) -> AbstractContextManager[None]:
    """Around a forward pass: whether its gradients are averaged over ranks in the backward pass that follows.

    Of several micro-batches of one update only the last has to; the others only add up.
    """
    if now or not isinstance(module, nn.parallel.DistributedDataParallel):
        return nullcontext()
    return module.no_sync()
