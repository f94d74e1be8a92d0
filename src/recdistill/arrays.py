"""Names of the arrays that modules hand to each other."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Bools: TypeAlias = npt.NDArray[np.bool_]
Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]
Items: TypeAlias = npt.NDArray[np.int32]
"""Dense items, 1…N; 0 is padding."""
Times: TypeAlias = npt.NDArray[np.int64] | npt.NDArray[np.float64]
