"""A model at work on `Pairs`: what it must offer, its image states kept within a memory budget, its ITM on any pair."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from capfilt.errors import ConfigError
from capfilt.evaluation.pairs import Pairs
from capfilt.models.protocols import Caption, PixelBatch

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and of how much."""


class Model(Protocol):
    """The parts of a BLIP that evaluation calls; each raises on its own if the model lacks the role."""

    @property
    def roles(self) -> frozenset[str]:
        """Subset of {"captioner", "matcher", "embedder"}."""
        ...

    def preprocess(self, images: Sequence[Image.Image]) -> PixelBatch:
        """(B, 3, S, S) float32."""
        ...

    def encode_images(self, pixels: PixelBatch) -> Tensor:
        """(B, P + 1, D) float32, [CLS] first."""
        ...

    def embed_images(self, image_states: Tensor) -> Tensor:
        """(B, E) float32, L2-normalised."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """(T, E) float32, L2-normalised."""
        ...

    def itm_logits(self, image_states: Tensor, texts: Sequence[str], image_index: Tensor) -> Tensor:
        """(T, 2) float32, column 1 is "match"; text t is judged with image_states[image_index[t]]."""
        ...

    def caption(self, images: PixelBatch, uids: Sequence[str], sample: int = 0) -> list[Caption]:
        """One caption an image."""
        ...


def require_role(model: Model, role: str) -> None:
    """Raises `ConfigError`, naming the roles that the model has, unless `role` is one of them."""
    if role not in model.roles:
        has = ", ".join(sorted(model.roles)) or "none"
        raise ConfigError(f"this evaluation needs a model with the role {role!r}; this model's roles: {has}")


def pixels(model: Model, pairs: Pairs, images: Sequence[int]) -> PixelBatch:
    """(B, 3, S, S) float32 of the images with these numbers."""
    return model.preprocess([pairs.decode(image) for image in images])


class ImageStates:
    """The vision tower's output for all images of `pairs`, in blocks of `batch_size` images, within `budget` bytes.

    368 images of ViT-B/16 at 384 px take 0.65 GB, COCO's 5,000 would take 8.9 GB: above the budget the blocks used
    longest ago are dropped and computed again when needed. ITM asks in order of image, so that is once more at most.
    """

    def __init__(self, model: Model, pairs: Pairs, batch_size: int, budget: int = 2 << 30) -> None:
        self._model, self._pairs, self._size, self._budget = model, pairs, batch_size, budget
        self._blocks: OrderedDict[int, Tensor] = OrderedDict()

    def __len__(self) -> int:
        """How many blocks there are."""
        return -(-len(self._pairs.images) // self._size)

    def __iter__(self) -> Iterator[Tensor]:
        """(<= batch_size, P + 1, D) float32 for each block, in order of image."""
        for number in range(len(self)):
            yield self._block(number)

    def gather(self, images: IntArray) -> Tensor:
        """(len(images), P + 1, D) float32; `images` ascending."""
        blocks = images // self._size
        parts = []
        for number in np.unique(blocks).tolist():
            inside = torch.from_numpy(images[blocks == number] - number * self._size)
            states = self._block(number)
            parts.append(states[inside.to(states.device)])
        return torch.cat(parts)

    def _block(self, number: int) -> Tensor:
        if number not in self._blocks:
            first = number * self._size
            images = range(first, min(first + self._size, len(self._pairs.images)))
            states = self._model.encode_images(pixels(self._model, self._pairs, images))
            self._blocks[number] = states
            room = max(1, self._budget // max(1, states.element_size() * states.nelement()))
            while len(self._blocks) > room:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(number)
        return self._blocks[number]


class Itm:
    """ITM logits of any (image, text) pairs of a `Pairs`."""

    def __init__(self, model: Model, states: ImageStates, texts: Sequence[str]) -> None:
        self._model, self._states, self._texts = model, states, texts

    def __call__(self, images: IntArray, texts: IntArray) -> NDArray[np.float32]:
        """(P,), (P,) image and text numbers, images ascending -> (P, 2) float32, column 1 is "match"."""
        needed, place = np.unique(images, return_inverse=True)
        states = self._states.gather(needed)
        chosen = [self._texts[text] for text in texts.tolist()]
        return to_numpy(self._model.itm_logits(states, chosen, torch.from_numpy(place).to(states.device)))


def to_numpy(tensor: Tensor) -> NDArray[np.float32]:
    """The tensor as a float32 array in main memory."""
    return np.asarray(tensor.detach().float().cpu().numpy(), dtype=np.float32)
