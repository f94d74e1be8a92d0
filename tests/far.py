"""A device that is not there, to find without a GPU what would fail on one.

It goes by the name of ``meta``, the only other device that torch has everywhere. Its tensors hold one of the CPU each,
so that they compute the same; but where one meets a tensor of the CPU, this is an error, as it is on a GPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from recdistill.training import loop

FAR = torch.device("meta")
_MOVES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
_INDEXES = (
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
)


class FarTensor(Tensor):
    """A tensor that says it is elsewhere."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> FarTensor:
        far: FarTensor = Tensor._make_wrapper_subclass(
            cls, near.shape, strides=near.stride(), storage_offset=near.storage_offset(), dtype=near.dtype, device=FAR
        )
        far.near = near
        return far

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Be saved as a tensor of the CPU, which a checkpoint is read as."""
        return self.near.__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        raise RuntimeError(f"{func} is asked of a far tensor outside of `far_device`")


class _Far(TorchDispatchMode):
    """Does with the tensors that the far ones hold what is asked of these."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        far = {id(x.near): x for x in tree_leaves((args, options)) if isinstance(x, FarTensor)}
        if far and func not in _MOVES:
            _refuse_near(func, args, options)
        if (device := options.get("device")) is not None:
            options["device"] = torch.device("cpu")
            stays_far = device == FAR
        else:
            stays_far = isinstance(args[0], FarTensor) if func in _MOVES else bool(far)
        near_args, near_options = tree_map_only(FarTensor, lambda x: x.near, (tuple(args), options))
        out = func(*near_args, **near_options)
        if not stays_far:
            return out
        return tree_map_only(Tensor, lambda x: far[id(x)] if id(x) in far else FarTensor(x), out)


class _FarLiterals(TorchFunctionMode):
    """Makes far tensors of plain numbers, which torch does without asking `_Far`."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func is Tensor.new_tensor and isinstance(args[0], FarTensor):
            return torch.tensor(args[1], dtype=args[0].dtype).to(FAR)
        literal = func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], Tensor)
        if literal and options.get("device") == FAR:
            return func(*args, **{**options, "device": "cpu"}).to(FAR)
        return func(*args, **options)


def _refuse_near(func: Any, args: Sequence[Any], options: Mapping[str, Any]) -> None:
    """Refuse tensors of the CPU but single numbers, and indices into a far tensor, which a GPU takes as well."""
    if func in _INDEXES and isinstance(args[0], FarTensor):
        args = (args[0], *args[2:])
    for leaf in tree_leaves((args, options)):
        if isinstance(leaf, Tensor) and not isinstance(leaf, FarTensor) and leaf.dim():
            raise RuntimeError(f"{func}: a tensor of the CPU, {tuple(leaf.shape)}, meets one of another device")


@contextmanager
def far_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Let tensors be moved to the device, and be made there, for a while.

    It has neither a generator nor a fused optimiser, so that training on it draws, and steps, as on the CPU.
    """
    adam, generator = torch.optim.Adam, torch.Generator
    with monkeypatch.context() as patch, warnings.catch_warnings(), _Far(), _FarLiterals():  # type: ignore[no-untyped-call]
        warnings.filterwarnings("ignore", "for .* copying from a non-meta parameter", UserWarning)  # they are copied
        patch.setattr(torch.optim, "Adam", lambda groups, *, fused, **rest: adam(groups, **rest))
        patch.setattr(loop, "_generator", lambda seed, device="cpu": generator().manual_seed(seed))
        yield FAR
