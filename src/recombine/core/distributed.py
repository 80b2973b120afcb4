"""Several processes started by torchrun; with one process every function is a no-op."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = [
    "all_reduce_sum",
    "average",
    "barrier",
    "divisor",
    "gather",
    "gather_batch",
    "gather_by_index",
    "gather_rows",
    "init",
    "maximum",
    "own_rows",
    "rank",
    "shared",
    "shutdown",
    "world",
]


def init(device: torch.device) -> tuple[int, int]:
    """Join the process group of torchrun's environment and return (rank, world size); (0, 1) outside torchrun.

    On CUDA the process takes the GPU of its local rank, so `torch.device("cuda")` means that one afterwards.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not dist.is_initialized():
        # both backends in one group: tensors travel by NCCL where they are on a GPU, control values always by gloo
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return dist.get_rank(), dist.get_world_size()


def rank() -> int:
    """Number of this process; 0 is the one that writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum `tensor` over all processes, in place, and return it."""
    if world() > 1:
        dist.all_reduce(tensor)
    return tensor


def maximum(*values: int) -> list[int]:
    """The largest of each value over all processes: how they agree to save or to stop at the same step."""
    if world() == 1:
        return list(values)
    shared = torch.tensor(values)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return shared.tolist()


def gather(value: Any) -> list[Any]:
    """The values of all processes, in rank order, on every process."""
    if world() == 1:
        return [value]
    values = [None] * world()
    dist.all_gather_object(values, value)
    return values


def gather_rows(*values: Tensor) -> tuple[Tensor, ...]:
    """The rows of all processes, in rank order, of tensors [n, ...] with the same n everywhere; no gradient."""
    if world() == 1:
        return values
    found = []
    for value in values:
        parts = [torch.empty_like(value, memory_format=torch.contiguous_format) for _ in range(world())]
        dist.all_gather(parts, value.detach().contiguous())
        found.append(torch.cat(parts))
    return tuple(found)


def own_rows(value: Tensor) -> Tensor:
    """This process's rows of a batch of all processes."""
    count = len(value) // world()
    return value[rank() * count : (rank() + 1) * count]


def shared(drawn: Tensor) -> Tensor:
    """The random numbers that the first process drew, which one process alone would draw too; in place."""
    if world() > 1:
        dist.broadcast(drawn, 0)
    return drawn


class _GatherBatch(torch.autograd.Function):
    """Each process's gradient is the sum of all theirs, which DistributedDataParallel averages again."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return gather_rows(value)[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return own_rows(all_reduce_sum(gradients[0].contiguous().clone()))


def gather_batch(value: Tensor) -> Tensor:
    """`gather_rows` of one tensor, with gradient: for losses that relate the samples of a batch to each other."""
    return _GatherBatch.apply(value) if world() > 1 else value


def average(value: Tensor) -> Tensor:
    """The mean over all processes; no gradient."""
    return all_reduce_sum(value.detach().clone()) / world()


def divisor(count: Tensor) -> Tensor:
    """What a sum over `count` samples of this process's batch is divided by; at least one sample counts in all.

    The mean of the processes' quotients, which the gradients become, is the mean over the samples of all.
    """
    return all_reduce_sum(count.detach().clone()).clamp(min=1) / world()


def gather_by_index(index: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """Bring the rows of all processes together, sorted by `index` with each sample once: (index, *values) on the CPU.

    `index` is [n] and every value [n, ...] with this process's own n, which may be 0.
    """
    pieces = [piece for piece in gather((index.cpu(), *(value.cpu() for value in values))) if len(piece[0])]
    if not pieces:
        return (index.cpu(), *(value.cpu() for value in values))
    together = [torch.cat(column) for column in zip(*pieces, strict=True)]
    order = torch.argsort(together[0], stable=True)
    ordered = together[0][order]
    fresh = torch.ones(len(ordered), dtype=torch.bool)
    fresh[1:] = ordered[1:] != ordered[:-1]
    return tuple(column[order[fresh]] for column in together)


def barrier() -> None:
    """Wait until every process is here."""
    maximum(0)


def shutdown() -> None:
    """Leave the process group; may be called twice."""
    if dist.is_initialized():
        dist.destroy_process_group()
