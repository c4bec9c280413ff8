"""One run on several processes, started by torchrun: each computes its part of every batch, and all have the same weights.

The global batch, its order and every image's draws are those of one process. Only what the model itself draws, for dropout and DropPath,
comes from a generator of each process. The first process leads: it plans, writes and prints; the others do their part of the runs that it
names. With one process nothing here does anything.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vitlab.errors import Lost, UserError

PATIENCE = datetime.timedelta(days=7)  # the others wait while the first process waits for a lock, downloads, or draws
LOST = re.compile("closed by peer|reset by peer|broken pipe|connection refused|remote process exited|aborted", re.IGNORECASE)


def start() -> None:
    """Join the other processes that torchrun has started, each on a GPU of its own where there are GPUs."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)


def end() -> None:
    """Leave the other processes."""
    dist.destroy_process_group()


def size() -> int:
    """Return how many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def name(device: str) -> str:
    """Return what a record says of the devices that a run was trained on; `device` is the name of one."""
    return device if size() == 1 else f"{size()} x {device}" if torch.cuda.is_available() else f"{device}, {size()} processes"


@contextlib.contextmanager
def noticing_loss() -> Iterator[None]:
    """Raise Lost, as a context manager, where the work within fails because another process has ended."""
    try:
        yield
    except (RuntimeError, dist.DistError) as e:
        if size() == 1 or not (isinstance(e, dist.DistError) or LOST.search(str(e))):
            raise
        raise Lost("another process of this run has ended. The same command goes on from the last checkpoint") from e


# -------------------------------------------------------------------------------------------------- agreeing


def told(value: Any = None) -> Any:
    """Return the `value` that the first process has."""
    if size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def every(value: Any) -> list[Any]:
    """Return the values of all processes, in their order."""
    if size() == 1:
        return [value]
    values = [None] * size()
    dist.all_gather_object(values, value)
    return values


def asked(number: int | None) -> int | None:
    """Return the largest signal that any process was sent, None without one, so that all stop after the same step."""
    if size() == 1:
        return number
    largest = torch.tensor(number or 0)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest) or None


def mean(values: dict[str, Tensor]) -> dict[str, float]:
    """Return the mean of each value () over the processes."""
    together = torch.stack(list(values.values()))
    if size() > 1:
        dist.all_reduce(together)
        together /= size()
    return dict(zip(values, together.tolist(), strict=True))


# ------------------------------------------------------------------------------------------------- dividing


def check(batch: int) -> None:
    """Raise UserError where a batch of so many images cannot be divided equally."""
    if batch % size():
        raise UserError(
            f"a batch of {batch} images cannot be divided among {size()} processes; change train.batch_size or --nproc-per-node"
        )


def part(batch: int, where: torch.device) -> Tensor | None:
    """Return which images of a batch this process computes, and first the one before them; None for all of them.

    That one is what Mixup and CutMix blend into the first. It is dropped after mixing.
    """
    if size() == 1:
        return None
    each = batch // size()
    return torch.arange(rank() * each - 1, (rank() + 1) * each, device=where) % batch


def my_rows(images: Tensor) -> Tensor:
    """Return this process's share of `images` (N, ...), in order; the shares differ by one image at most."""
    return images.tensor_split(size())[rank()] if size() > 1 else images


def all_rows(mine: Tensor, dim: int) -> Tensor:
    """Return what all processes have computed of their `my_rows`, joined along `dim`."""
    return torch.cat([rows.to(mine.device) for rows in every(mine.cpu())], dim) if size() > 1 else mine


# ------------------------------------------------------------------------------------------------- the model


class _Heads(nn.Module):
    """A model whose call gives all heads' logits, computed by `forward_heads`: DistributedDataParallel only knows calls."""

    def __init__(self, model: nn.Module, forward_heads: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.forward_heads = model, forward_heads

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_heads(images)


def exchanging(model: nn.Module) -> bool:
    """Return whether the model's forward pass exchanges numbers with other processes, which no one graph can hold."""
    return any(isinstance(module, CpuSyncBatchNorm) for module in model.modules())


def forward_of(model: nn.Module, forward_heads: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return `forward_heads`, the model's from images (B, 3, H, W) to logits (H, B, C), with gradients that are the mean over the processes."""
    if size() == 1:
        return forward_heads
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")  # torch 2.11 does not know its new name
        # batch norms' statistics are the same in all processes already
        return DistributedDataParallel(_Heads(model, forward_heads), broadcast_buffers=False)


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        return _Sum.forward(ctx, grad)


class CpuSyncBatchNorm(nn.BatchNorm2d):
    """Batch norm over the batches of all processes, which are of one size; torch's own (SyncBatchNorm) computes on GPUs alone."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W) by the mean and variance over all processes in training, by the running ones in evaluation."""
        if not self.training:
            return super().forward(x)
        wide = x.to(self.running_mean.dtype)  # float32, also for images in bf16
        own = torch.stack(torch.var_mean(wide, (0, 2, 3), correction=0))  # (2, C)
        mine = own.new_zeros(size(), *own.shape).index_put((torch.tensor(rank()),), own)
        variances, means = _Sum.apply(mine).unbind(1)  # (processes, C) each; as a sum, since that is one exchange forward and one backward
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)  # not E[x^2] - E[x]^2, which loses digits
        with torch.no_grad():
            count = size() * x.numel() // x.shape[1]
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return torch.addcmul((self.bias - mean * scale)[:, None, None], wide, scale[:, None, None]).to(x.dtype)


def synchronised(model: nn.Module) -> nn.Module:
    """Return the model with batch norms that see all processes' images."""
    if size() == 1:
        return model
    if next(model.parameters()).is_cuda:
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for parent in model.modules():
        for name, norm in parent.named_children():
            if isinstance(norm, nn.BatchNorm2d):
                ours = CpuSyncBatchNorm(norm.num_features, norm.eps, norm.momentum)
                ours.load_state_dict(norm.state_dict())
                setattr(parent, name, ours)
    return model
