"""Where models are trained and asked: on the CPU, or on a CUDA device."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

from recdistill.errors import SettingsError

NAMES = r"^(auto|cpu|cuda(:[0-9]+)?)$"
"""What a device may be called: ``auto`` is a CUDA device if there is one, ``cuda`` torch's current one."""
Module = TypeVar("Module", bound=nn.Module)


def find_device(name: str) -> torch.device:
    """Return the device with one of these `NAMES`.

    Raises:
        SettingsError: when it is not there.
    """
    n_there = torch.cuda.device_count() if name != "cpu" and torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not n_there):
        return torch.device("cpu")
    if not n_there:
        lack = "is built without CUDA" if torch.version.cuda is None else "finds no GPU, or no driver for it"
        raise SettingsError(
            f"training.device is {name!r}, but PyTorch {torch.__version__} {lack}: set it to 'cpu' or 'auto', or "
            "install what is missing (`python -m torch.utils.collect_env` says what is there)"
        )
    index = int(name.removeprefix("cuda:")) if ":" in name else torch.cuda.current_device()
    if index >= n_there:
        raise SettingsError(
            f"training.device is {name!r}, but the last CUDA device is 'cuda:{n_there - 1}': set it to that, or to "
            "'cuda' for the current one"
        )
    return torch.device("cuda", index)


def on_device(module: Module, device: torch.device | str) -> Module:
    """Return the module itself if its weights are on the device, else a copy that is."""
    device = torch.device(device)
    if next(module.parameters()).device == device:
        return module
    return copy.deepcopy(module).to(device)
