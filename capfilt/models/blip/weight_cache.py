"""Cache of a value computed from weights: computed once, and again after the weights have changed."""

from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor

T = TypeVar("T")


class WeightCache(Generic[T]):
    """One cached value and the weights that it was computed from. Copies and pickles of a model start empty."""

    def __init__(self) -> None:
        self._key: list[tuple[Tensor, int, int]] = []
        self._value: T | None = None

    def get(self, weights: list[Tensor], compute: Callable[[], T]) -> T:
        """Return `compute()`, or its earlier result if these very weights have not changed since.

        A weight has changed if it is another tensor, its storage has moved, or it was written to in place. A write
        through `.data` is not noticed.
        """
        now = [(w, w.data_ptr(), 0 if w.is_inference() else w._version) for w in weights]
        same = len(now) == len(self._key) and all(
            a[0] is b[0] and a[1:] == b[1:] for a, b in zip(now, self._key, strict=True)
        )
        if self._value is None or not same:
            self._key, self._value = now, compute()
        return self._value

    def __reduce__(self) -> tuple[type["WeightCache[T]"], tuple[()]]:
        return type(self), ()
