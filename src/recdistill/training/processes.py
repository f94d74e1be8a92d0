"""Training in several processes at once, under ``torchrun``; one process alone needs none of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

from recdistill.errors import SettingsError, TrainingError

_ANNOUNCED = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
"""Variables by which ``torchrun``, and what starts processes in its way, tells each of them who it is."""
_LONGEST_WAIT = timedelta(days=7)
"""For process 0, which alone asks a slow API, say, and evaluates."""


def announced() -> tuple[int, int]:
    """Return this process's number, from 0, and how many there are, by the environment; also outside `joined`."""
    if not (dist.is_available() and os.environ.keys() >= _ANNOUNCED):
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Be one of the processes that ``torchrun`` has started, for the length of the block; nothing happens without it.

    Who is one of several already stays so.

    Args:
        device: where each of them trains; of several GPUs each takes its own.

    Raises:
        SettingsError: when they are to share one GPU.
    """
    number, n_processes = announced()
    if n_processes == 1 or dist.is_initialized():
        yield
        return
    if device.startswith("cuda:"):
        raise SettingsError(
            f"training.device is {device!r}, but each of {n_processes} processes needs a GPU of its "
            "own: set it to 'cuda', or start one process"
        )
    on_gpus = device != "cpu" and torch.cuda.is_available()
    if on_gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", number)))
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo", timeout=_LONGEST_WAIT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def wait() -> None:
    """Wait until all processes are here.

    Raises:
        TrainingError: when one of them has ended instead.
    """
    if world_size() == 1:
        return
    try:
        dist.all_reduce(torch.zeros(1))
    except RuntimeError as error:  # gloo's word for a connection that is closed
        raise TrainingError("another process of this run has ended; it says why") from error


@contextmanager
def one_after_the_first() -> Iterator[None]:
    """Let process 0 do the block alone, and then the others, which find what it has written down."""
    if rank() != 0:
        wait()
    yield
    if rank() == 0:
        wait()


def rank() -> int:
    """Return this process's number, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Return how many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Replace each gradient by its mean over all processes; one that a process lacks counts as 0 there."""
    if world_size() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)
        parameter.grad /= world_size()


def from_first(value: float, device: torch.device) -> float:
    """Return the value that process 0 has; ``device`` is where the group exchanges tensors."""
    if world_size() == 1:
        return value
    shared = torch.tensor([value], dtype=torch.float64, device=device)
    dist.broadcast(shared, 0)
    return float(shared)
