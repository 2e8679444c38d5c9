"""Training on several processes through Accelerate: each takes a share of every batch, gradients are averaged."""

import os
from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn


class Parallel:
    """The processes that train together, as one of them sees them.

    `Parallel()` is a process that trains alone, and everything here is then the identity; `Parallel.launched()` are the
    processes that `accelerate launch` started, and alone where it started none. A batch is global: all processes draw
    the same one, and process `rank` of `world` takes every `world`-th row of it.

    The model is on `device`. A loss that is a mean over samples needs nothing more. One that is a mean over tokens
    takes it by `mean`, and one that compares the rows of a batch with each other compares the rows of `gather`.
    """

    def __init__(self, accelerator: Accelerator | None = None):
        self.accelerator: Any = accelerator  # its calls are not typed
        self.rank: int = accelerator.process_index if accelerator else 0
        self.world: int = accelerator.num_processes if accelerator else 1
        self.device: torch.device = accelerator.device if accelerator else torch.get_default_device()

    @classmethod
    def launched(cls) -> "Parallel":
        """The processes that were launched together with this one; NCCL joins them on GPUs, gloo on CPUs.

        Raises:
            ValueError: where several were launched and Accelerate joins none, as it does on CPUs unless it is told.
        """
        parallel, started = cls(Accelerator()), int(os.environ.get("WORLD_SIZE", "1"))
        if parallel.world != started:
            raise ValueError(
                f"{started} processes were launched and each would train alone: on CPUs, set ACCELERATE_USE_CPU=true"
                " before `accelerate launch --multi_gpu`"
            )
        return parallel

    @property
    def main(self) -> bool:
        """Whether this process writes files and shows a progress bar."""
        return self.rank == 0

    def check_batch(self, batch: int) -> None:
        """Refuse a global batch that cannot be shared evenly.

        Raises:
            ValueError: naming both numbers.
        """
        if batch % self.world:
            raise ValueError(
                f"a batch of {batch} cannot be shared evenly by {self.world} processes: give a multiple of {self.world}"
            )

    def share(self, rows: Shaped[Tensor, "batch *rest"]) -> Shaped[Tensor, "share *rest"]:
        """This process's rows of a global batch."""
        return rows[self.rank :: self.world]

    def gather(self, own: Shaped[Tensor, "share *rest"]) -> Shaped[Tensor, "batch *rest"]:
        """The rows of all processes, in the order of the global batch, with a gradient to this process's own.

        It is for losses that every process computes of the whole batch, such as `losses.info_nce`: the gradient is
        `world` times the own rows', so that its mean over the processes is the gradient of one process with all rows.
        """
        return own if self.world == 1 else _Gather.apply(own, self)

    def mean(self, total: Float[Tensor, ""], count: int | Int[Tensor, ""]) -> Float[Tensor, ""]:
        """This process's part in a mean over what all processes count, such as the tokens that have labels.

        It is `total * world / (count of all)`: its mean over the processes is the mean, and so are the gradients.

        Args:
            total: the sum over this process's share.
            count: over how many, on this process.
        """
        if self.world == 1:
            return total / count
        counts = torch.as_tensor(count, dtype=torch.float32, device=total.device)
        return total * self.world / self.accelerator.reduce(counts, "sum")

    def average(self, value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The mean over the processes, without a gradient."""
        return value if self.world == 1 else self.accelerator.reduce(value.detach(), "mean")

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give all processes the mean of their gradients; a parameter that none has a gradient for is left without."""
        if self.world == 1:
            return
        trained = [p for p in parameters if p.requires_grad]
        there = torch.tensor([p.grad is not None for p in trained], dtype=torch.float32, device=trained[0].device)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        flat = self.average(torch.cat([there, *(grad.flatten() for grad in grads)]))  # in one message
        share, *means = flat.split([len(trained), *(p.numel() for p in trained)])
        for parameter, some, mean in zip(trained, share.tolist(), means, strict=True):
            parameter.grad = mean.view_as(parameter).to(parameter.dtype) if some else None

    def agree(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give all processes the main one's values."""
        if self.world > 1:
            for parameter in parameters:
                broadcast(parameter.data)

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.world > 1:
            self.accelerator.wait_for_everyone()


class _Gather(torch.autograd.Function):
    """All processes' rows forward, and backward this process's own, `world` times."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, parallel: Parallel) -> Tensor:
        ctx.parallel = parallel
        rows = parallel.accelerator.gather(own.detach())  # (W * share, ...), process after process
        return rows.unflatten(0, (parallel.world, -1)).transpose(0, 1).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.parallel.share(grad) * ctx.parallel.world, None
