"""Which type ``auto`` stands for."""

import pytest
import torch

from recdistill.losses.precision import resolved


def test_a_gpu_that_only_emulates_bf16_is_given_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Emulation is far slower than fp32, and torch counts it as support unless told not to."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    gpu = torch.device("cuda")
    assert (resolved("auto", gpu), resolved("bf16", gpu), resolved("fp32", gpu)) == ("fp32", "bf16", "fp32")
