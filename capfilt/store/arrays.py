"""NumPy forms of stored columns."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]
Bools: TypeAlias = NDArray[np.bool_]
Reasons: TypeAlias = NDArray[np.object_]
"""str, or None where the text is kept."""


def equal(values: NDArray[np.object_], value: str | None) -> Bools:
    """Elementwise."""
    return np.asarray(values == value, dtype=bool)
