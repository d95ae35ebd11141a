"""Types of NumPy arrays that hold stored columns, one element per row or per text."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]
Bools: TypeAlias = NDArray[np.bool_]
Reasons: TypeAlias = NDArray[np.object_]
"""Why a text is not kept, as str; None where it is kept."""


def equal(values: NDArray[np.object_], value: str | None) -> Bools:
    """Compare each element with `value`. Returns an array of the same shape; unlike `==`, it works for None, too."""
    return np.asarray(values == value, dtype=bool)
