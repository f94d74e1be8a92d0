"""The type in which large matrix products run."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

Precision: TypeAlias = Literal["auto", "fp32", "bf16"]


def compute_dtype(like: Tensor, precision: Precision) -> torch.dtype:
    """Return the type in which large matrix products run.

    bf16 keeps 8 bits of a number: on logits that differ by a few units that is noise far below that of the mini-batch,
    for half the memory traffic and twice the arithmetic; it grows with them (`LabelLossConfig.precision` has figures).
    ``auto`` picks it only where the hardware multiplies bf16 itself.
    """
    return torch.bfloat16 if resolved(precision, like.device) == "bf16" else torch.float32


def resolved(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """Return what a precision is on a device: itself, or what ``auto`` stands for there."""
    if precision == "auto":
        return "bf16" if _multiplies_bf16(device.type) else "fp32"
    return precision


def _multiplies_bf16(device: str) -> bool:
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return device == "cpu" and supported is not None and bool(supported())
