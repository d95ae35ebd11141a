"""A system at work on `Pairs`: its image states kept within a memory budget, its ITM on any pair."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from capfilt.errors import ConfigError
from capfilt.evaluation.pairs import Pairs
from capfilt.models.protocols import RetrievalJudge, States, System

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and of how much."""


def require_role(system: System, role: str) -> None:
    """Raise ConfigError, naming the roles that the model has, unless `role` is one of them."""
    if role not in system.card.roles:
        has = ", ".join(sorted(system.card.roles)) or "none"
        raise ConfigError(f"this evaluation needs a model with the role {role!r}; this model's roles: {has}")


def encode(system: System, pairs: Pairs, images: Sequence[int]) -> States:
    """States of the images with these numbers."""
    return system.encode([system.prepare(pairs.decode(image), pairs.images[image]) for image in images])


class ImageStates:
    """States of all images of `pairs`, in blocks of `batch_size` images, within `budget` bytes.

    368 images of ViT-B/16 at 384 px take 0.65 GB, COCO's 5,000 would take 8.9 GB: above the budget the blocks used
    longest ago are dropped and computed again when needed. ITM asks in order of image, so that is once more at most.
    """

    def __init__(self, system: System, pairs: Pairs, batch_size: int, budget: int = 2 << 30) -> None:
        self._system, self._pairs, self._size, self._budget = system, pairs, batch_size, budget
        self._blocks: OrderedDict[int, States] = OrderedDict()

    def __len__(self) -> int:
        """Number of blocks."""
        return -(-len(self._pairs.images) // self._size)

    def __iter__(self) -> Iterator[States]:
        """The states of each block, at most batch_size images, in order of image."""
        for number in range(len(self)):
            yield self._block(number)

    def split(self, images: IntArray) -> Iterator[tuple[States, slice]]:
        """The blocks that hold these images, each with the place of its images.

        Args:
            images: (P,) image numbers, ascending; one may be there several times.
        Yields:
            States of the different images of a block, in order, and the slice of `images` that they are.
        """
        blocks = images // self._size
        for number in np.unique(blocks).tolist():
            start, stop = np.searchsorted(blocks, [number, number + 1]).tolist()
            inside = np.unique(images[start:stop]) - number * self._size
            yield self._block(number)[inside.tolist()], slice(start, stop)

    def _block(self, number: int) -> States:
        if number not in self._blocks:
            first = number * self._size
            images = range(first, min(first + self._size, len(self._pairs.images)))
            states = encode(self._system, self._pairs, images)
            self._blocks[number] = states
            room = max(1, self._budget // max(1, states.nbytes))
            while len(self._blocks) > room:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(number)
        return self._blocks[number]


class Itm:
    """ITM logits of any (image, text) pairs of a `Pairs`."""

    def __init__(self, judge: RetrievalJudge, states: ImageStates, texts: Sequence[str]) -> None:
        self._judge, self._states, self._texts = judge, states, texts

    def __call__(self, images: IntArray, texts: IntArray) -> NDArray[np.float32]:
        """(P,), (P,) image and text numbers, images ascending -> (P, 2) float32, column 1 is "match"."""
        parts = []
        for states, place in self._states.split(images):
            chosen = [self._texts[text] for text in texts[place].tolist()]
            _, index = np.unique(images[place], return_inverse=True)
            parts.append(to_numpy(self._judge.itm_logits(states, chosen, index.tolist())))
        return np.concatenate(parts)


def to_numpy(tensor: Tensor) -> NDArray[np.float32]:
    """The tensor as a float32 array in main memory."""
    return np.asarray(tensor.detach().float().cpu().numpy(), dtype=np.float32)
