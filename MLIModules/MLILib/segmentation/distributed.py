"""Training on several devices at once: one process each, started by torchrun, gradients averaged (Li 2020).

    torchrun --nproc-per-node 2 -m MLILib.cli train segmentation dataset.json -o my_bundle

Every process reads the cases and takes its share of each step's; the first one validates and writes.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import distributed, nn

T = TypeVar("T")

#: The others wait so long for the first process to validate and write.
_PATIENCE = datetime.timedelta(hours=2)


@dataclasses.dataclass(frozen=True)
class Team:
    """The processes of a training.

    Attributes:
        rank: of this process, from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1
    _wrapped: list[nn.parallel.DistributedDataParallel] = dataclasses.field(
        default_factory=list, repr=False, compare=False
    )

    @property
    def leads(self) -> bool:
        """Whether this process validates and writes."""
        return self.rank == 0

    def share(self, chosen: Sequence[T]) -> list[T]:
        """What this process takes of a step's cases; where there are too few, some are taken twice."""
        wanted = max(self.size, -(-len(chosen) // self.size) * self.size)
        return [chosen[i % len(chosen)] for i in range(self.rank, wanted, self.size)]

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            distributed.barrier()

    def any(self, value: bool, device: torch.device) -> bool:
        """Whether it is so in any of the processes."""
        if self.size == 1:
            return value
        flag = torch.tensor(int(value), device=device)
        distributed.all_reduce(flag, distributed.ReduceOp.MAX)
        return bool(flag)

    def agreed(self, value: T) -> T:
        """The first process's value, in all of them."""
        if self.size == 1:
            return value
        held: list[Any] = [value]
        distributed.broadcast_object_list(held, src=0)
        return held[0]

    def wrapped(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The network as it is called while the team is there: gradients are averaged over the processes."""
        if self.size == 1:
            return network
        made = nn.parallel.DistributedDataParallel(network, [device.index] if device.type == "cuda" else None)
        self._wrapped.append(made)
        return made

    def part(self) -> None:
        """End what :meth:`wrapped` gave.

        A wrapped network that outlives the process group ends the group's thread as it is freed, and holds Python's
        lock meanwhile; that thread may wait for the lock to free a tensor of its own, and the process never ends.
        """
        for network in self._wrapped:
            del network.reducer, network.logger
        self._wrapped.clear()


def device_of(name: str) -> str:
    """The device setting of this process: where torchrun started several on GPUs, each has its own."""
    local = os.environ.get("LOCAL_RANK")
    if local is None or name not in ("auto", "cuda") or not torch.cuda.is_available():
        return name
    return f"cuda:{int(local) % torch.cuda.device_count()}"


@contextmanager
def team(device: torch.device) -> Iterator[Team]:
    """The processes that torchrun started; one alone where it did not."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "RANK" not in os.environ:
        yield Team()
        return
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    crew = Team(distributed.get_rank(), distributed.get_world_size())
    try:
        yield crew
    finally:
        crew.part()
        distributed.destroy_process_group()
