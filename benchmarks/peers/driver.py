"""What every driver shares: its arguments, its data and the line that it prints.

A driver measures one system on one set of sequences and prints one line of JSON, the last line of its output.
Needs only numpy, because it also runs inside the peers' environments.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from benchmarks.peers.machine import Load, peak_mb

DIM, N_BLOCKS, N_HEADS, LEARNING_RATE = 64, 2, 2, 1e-3
"""The SASRec that every system trains; the rest is each system's own default."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """What a driver is asked to measure."""

    sequences: Path
    max_len: int
    loss: str
    """``full-softmax`` or ``sampled-softmax``."""
    seconds: float
    threads: int
    inner_dim: int
    """Width of the feed-forward layers; RecTools' two networks do not let one choose theirs (64 and 256)."""
    compiled: bool = False
    """With ``torch.compile``; ours only."""

    @classmethod
    def parse(cls, description: str) -> Arguments:
        """Read the command line."""
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--sequences", type=Path, required=True, help="file written by write_sequences")
        parser.add_argument("--max-len", type=int, required=True)
        parser.add_argument("--loss", choices=["full-softmax", "sampled-softmax"], default="full-softmax")
        parser.add_argument("--seconds", type=float, default=8.0, help="how long to measure after warming up")
        parser.add_argument("--threads", type=int, default=2)
        parser.add_argument("--inner-dim", type=int, default=DIM, help="feed-forward width, where it can be chosen")
        parser.add_argument("--compiled", action="store_true", help="with torch.compile; ours only")
        return cls(**vars(parser.parse_args()))

    def command_line(self) -> list[str]:
        """Return the arguments as a driver takes them."""
        return [
            *("--sequences", str(self.sequences), "--max-len", str(self.max_len), "--loss", self.loss),
            *("--seconds", str(self.seconds), "--threads", str(self.threads), "--inner-dim", str(self.inner_dim)),
            *(["--compiled"] if self.compiled else []),
        ]


@dataclass(frozen=True, slots=True)
class Histories:
    """Whole histories, oldest item first; the last two items of each are held out from training."""

    items: npt.NDArray[np.int64]
    """``(n_interactions,)`` item ids in 1…N."""
    offsets: npt.NDArray[np.int64]
    """``(U+1,)`` where each user's history begins."""

    @classmethod
    def read(cls, path: Path) -> Histories:
        """Read what :meth:`write` wrote."""
        with np.load(path) as arrays:
            return cls(arrays["items"].astype(np.int64), arrays["offsets"].astype(np.int64))

    def write(self, path: Path) -> None:
        """Write to an ``.npz`` file."""
        np.savez(path, items=self.items.astype(np.int32), offsets=self.offsets)

    def without_newest(self, n: int) -> Histories:
        """Drop the ``n`` newest items of every user; a user with no more than ``n`` keeps an empty history."""
        lengths = np.diff(self.offsets)
        positions = np.arange(len(self.items)) - np.repeat(self.offsets[:-1], lengths)
        kept = np.maximum(lengths - n, 0)
        return Histories(self.items[positions < np.repeat(kept, lengths)], np.concatenate([[0], np.cumsum(kept)]))

    def flat(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return user (from 0), item and position of every interaction, each ``(n_interactions,)``."""
        lengths = np.diff(self.offsets)
        users = np.repeat(np.arange(len(lengths)), lengths)
        return users, self.items, np.arange(len(self.items)) - self.offsets[users]

    @property
    def n_users(self) -> int:
        """Number of users, U."""
        return len(self.offsets) - 1


def check_finite(loss: float, system: str) -> None:
    """Refuse to time a training run that has already failed.

    Raises:
        RuntimeError: when the loss is infinite or not a number.
    """
    if not math.isfinite(loss):
        raise RuntimeError(f"the training loss of {system} is {loss}; its step time means nothing")


def report(package: str, *, seconds: float, load: Load, **more: Any) -> None:
    """Print the result: ``seconds`` (of an epoch, say), version, peak memory and who else used the processor."""
    line = {
        "version": version(package),
        "seconds": seconds,
        "peak_mb": peak_mb(),
        "own_cores": round(load.own, 3),
        "foreign_cores": round(load.foreign, 3),
        "stolen_cores": round(load.stolen, 3),
        **more,
    }
    print(json.dumps(line), flush=True)
