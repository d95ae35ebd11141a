"""A complete system without weights, for tests, documentation and first steps: `model: fake`.

It compares the colours of an image with the names of colours in a text: "a red picture" fits an image that is mostly
red. Its output has the same bytes in every batch.

An image is resized to 8 x 8 pixels. Its features are the share of pixels that is nearest to each colour, and the
pattern of its brightness on a grid of 4 x 4, by which two images of the same colours differ. A text has equal shares of
the colours that it names, or of all colours if it names none.
"""

import math
from collections.abc import Hashable, Sequence
from hashlib import sha256

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from capfilt.config.decoding import Decoding
from capfilt.errors import InputError
from capfilt.media.rgb import to_rgb
from capfilt.media.text import pre_caption
from capfilt.models.card import ModelCard, Score, cards
from capfilt.models.factory import LoadRequest
from capfilt.models.protocols import Caption, Match, Prepared, States, System
from capfilt.models.tensors import stack, tensor_of

COLOURS = {
    "red": (255, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0), "purple": (255, 0, 255),
    "cyan": (0, 255, 255), "orange": (255, 128, 0), "white": (255, 255, 255), "grey": (128, 128, 128),
    "black": (0, 0, 0),
}  # fmt: skip
"""Name -> RGB."""

GRID = 4
"""Cells along a side of the brightness pattern."""
PATTERN = 0.4
"""Length of the pattern, relative to that of the colour shares. It lowers the cosine with a text to 0.93 of the value
without a pattern."""
FAINT = 1e-3
"""Smallest length, over all cells, of a pattern of brightness in [0, 1]; an image below it has no pattern."""
TEMPLATES = ("a {} picture", "a picture of a {} thing", "something {} on a wall", "a photo with a lot of {}")
WRONG = 8
"""One in WRONG captions from nucleus sampling names a wrong colour, so that the judge has something to reject."""

_RGB = np.array(list(COLOURS.values()), dtype=np.float64)
_NAMES = list(COLOURS)


class FakeSystem:
    """Captioner, judge and embedder. See `models.protocols`."""

    embed_dim = len(COLOURS) + GRID * GRID
    bytes_per_image = 8 * embed_dim
    input_key: Hashable = "fake"
    encoder_key: Hashable = "fake"

    def __init__(self, card: ModelCard | None = None, device: str = "cpu") -> None:
        self.card = card or cards()["fake"]
        self.device = torch.device(device)
        self.decoding = Decoding()

    def prepare(self, image: Image.Image, file_bytes: bytes) -> Prepared:
        """Return {"features": (D,) float32, L2-normalised}."""
        return {"features": torch.from_numpy(_features(image))}

    def encode(self, prepared: Sequence[Prepared]) -> Tensor:
        """Return the features of B images, (B, D) float32."""
        return stack(prepared, "features").to(self.device)

    def share_encoder(self, other: System) -> None:
        """Do nothing: there are no weights."""

    def release(self) -> None:
        """Do nothing: there are no caches."""

    def captions(self, states: States, uids: Sequence[str], samples: Sequence[int]) -> list[list[Caption]]:
        """See `Captioner.captions`. Greedy and beam search always write "a red picture", with the main colour."""
        self.card.require("captioner")
        if len(uids) != len(states):
            raise InputError(f"{len(states)} images but {len(uids)} uids; give one uid per image")
        main = [row.index(max(row)) for row in tensor_of(states)[:, : len(COLOURS)].tolist()]
        return [[self._caption(colour, uid, i) for i in samples] for colour, uid in zip(main, uids, strict=True)]

    def _caption(self, colour: int, uid: str, sample: int) -> Caption:
        noise = sha256(f"{self.decoding.seed} {uid} {sample}".encode()).digest()
        if self.decoding.method != "nucleus":
            return Caption(TEMPLATES[0].format(_NAMES[colour]), -0.5)
        shift = 0 if noise[0] % WRONG else 1 + noise[1] % (len(COLOURS) - 1)
        text = TEMPLATES[noise[2] % len(TEMPLATES)].format(_NAMES[(colour + shift) % len(COLOURS)])
        return Caption(text, -1 - noise[3] / 256)

    def measured(self, max_length: int | None = None, prompt: str | None = None) -> Decoding:
        """See `Captioner.measured`; the length and the prompt do not matter."""
        return Decoding(method="beam")

    def clean(self, text: str) -> str:
        """Return the text in lower case, without punctuation, at most 30 words long."""
        return pre_caption(text)

    def match(self, states: States, texts: Sequence[Sequence[str]]) -> list[list[Match]]:
        """See `Judge.match`. itc is the cosine of the features; itm is 0.98 at a cosine of 1, and 0.5 at 0.5."""
        self.card.require("judge")
        if len(texts) != len(states):
            raise InputError(f"{len(states)} images but texts for {len(texts)}; give one list of texts per image")
        images = tensor_of(states).double().cpu().numpy()
        return [[_match(image, text) for text in some] for image, some in zip(images, texts, strict=True)]

    def embed(self, states: States) -> Tensor:
        """Return the features as the embedding, (B, D) float32, L2-normalised."""
        self.card.require("embedder")
        return tensor_of(states)

    def image_features(self, states: States) -> Tensor:
        """Return the features, (B, D) float32."""
        return tensor_of(states)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed T texts -> (T, D) float32, L2-normalised. Raises InputError for an empty text, or no texts."""
        self.card.require("judge")
        if not texts:
            raise InputError("no texts; give one or more")
        return torch.from_numpy(np.stack([_text_features(text) for text in texts])).to(self.device)

    def itm_logits(self, states: States, texts: Sequence[str], image_index: Sequence[int]) -> Tensor:
        """See `RetrievalJudge.itm_logits`."""
        self.card.require("judge")
        images = tensor_of(states).double().cpu().numpy()
        logits = [_logit(_cosine(images[i], text)) for text, i in zip(texts, image_index, strict=True)]
        return torch.tensor([[-logit, logit] for logit in logits], dtype=torch.float32, device=self.device)


class FakeFactory:
    """See `models.factory.SystemFactory`."""

    model_types = ("fake",)
    scores: tuple[Score, ...] = ("itc", "itm")
    prompt = None

    def load(self, request: LoadRequest) -> FakeSystem:
        """Create the system; no files are read."""
        return FakeSystem(request.card, request.device)


def _features(image: Image.Image) -> NDArray[np.float32]:
    small = np.asarray(to_rgb(image).resize((8, 8), Image.Resampling.BOX), dtype=np.float64)  # (8, 8, 3)
    nearest = ((small[:, :, None] - _RGB) ** 2).sum(-1).argmin(-1)
    share = np.bincount(nearest.ravel(), minlength=len(COLOURS)) / nearest.size
    light = small.mean(-1).reshape(GRID, 2, GRID, 2).mean((1, 3)) / 255
    return _unit(np.concatenate([share, PATTERN * math.sqrt(float((share * share).sum())) * _pattern(light.ravel())]))


def _pattern(light: NDArray[np.float64]) -> NDArray[np.float64]:
    """Brightness around its mean, of length 1; zeros for an even image."""
    centred = light - light.mean()
    length = math.sqrt(float((centred * centred).sum()))
    return centred / length if length > FAINT else np.zeros_like(centred)


def _text_features(text: str) -> NDArray[np.float32]:
    words = text.split()
    if not words:
        raise InputError("a text is empty; give none that `clean` leaves empty")
    named = np.array([name in words for name in COLOURS], dtype=np.float64)
    return _unit(np.concatenate([named if named.any() else named + 1, np.zeros(GRID * GRID)]))


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float32]:
    return (vector / math.sqrt(float((vector * vector).sum()))).astype(np.float32)


def _match(image: NDArray[np.float64], text: str) -> Match:
    cosine = _cosine(image, text)
    return Match(itc=cosine, itm=1 / (1 + math.exp(-2 * _logit(cosine))))


def _cosine(image: NDArray[np.float64], text: str) -> float:
    return min(1.0, max(-1.0, float((image * _text_features(text)).sum())))


def _logit(cosine: float) -> float:
    return 4 * (cosine - 0.5)
