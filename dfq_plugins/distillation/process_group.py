"""Training in several processes started by torchrun: each takes a part of every batch, and gradients are averaged."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor, nn


class ProcessGroup:
    """The process group of a training run. With a single process, every method is a no-op."""

    def __init__(self) -> None:
        joined = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if joined else 0
        self.size = dist.get_world_size() if joined else 1

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.rank == 0

    def part(self, tensor: Tensor) -> Tensor:
        """Return this process's part of a batch, every `size`-th sample."""
        return tensor[self.rank :: self.size] if self.size > 1 else tensor

    def average(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, with one all-reduce."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.detach().reshape(-1).float() for tensor in tensors])
        dist.all_reduce(flat)
        parts = torch.split(flat / self.size, [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.detach().copy_(part.view_as(tensor))

    def average_gradients(self, parameters: Iterable[nn.Parameter], loss: Tensor) -> Tensor:
        """Average the gradients in place, and return the mean loss, detached."""
        mean = loss.detach().clone()
        if self.size > 1:
            for parameter in parameters:
                if parameter.grad is None:  # each process sends the same number of values
                    parameter.grad = torch.zeros_like(parameter)
            self.average([*(parameter.grad for parameter in parameters if parameter.grad is not None), mean])
        return mean

    def average_statistics(self, model: nn.Module) -> None:
        """Average the statistics that each process observed on its data: running means, variances and ranges."""
        buffers = [b for _, b in model.named_buffers() if b.is_floating_point() and bool(b.isfinite().all())]
        self.average(buffers)

    def same_number(self, value: float) -> float:
        """Return the first process's value in all processes."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(shared, 0)
        return float(shared)

    def wait(self) -> None:
        """Wait until every process arrives."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined_process_group() -> Iterator[ProcessGroup]:
    """Join the processes of a `torchrun` within the block; an existing process group is used as it is."""
    wanted = int(os.environ.get("WORLD_SIZE", "1")) > 1 and dist.is_available() and not dist.is_initialized()
    if wanted:
        dist.init_process_group("gloo")
    try:
        yield ProcessGroup()
    finally:
        if wanted:
            dist.destroy_process_group()
