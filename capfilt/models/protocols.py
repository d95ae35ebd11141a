"""The interface between the pipeline and a model: a `System`, and its roles (`Captioner`, `Judge`, `Embedder`).

A system is any object with these methods; it need not inherit from the protocols. `capfilt.models.fake` is a short and
complete example. Images go through a system in three steps: `prepare` in the decoding threads, `encode` once per image,
then the methods of one or more roles on the encoded states.

A score that a system does not compute is None, never 0.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from PIL import Image
from torch import Tensor

from capfilt.config.decoding import Decoding
from capfilt.models.card import ModelCard

Prepared = Mapping[str, Tensor] | bytes
"""One image as its system's input: named tensors, which are copied to the system's device, or bytes for an endpoint.
Only the system that prepared it reads its contents."""


class States(Protocol):
    """Encoded images, in order, such as a tensor or a NumPy array whose first dimension is the image.

    Only the system that encoded them reads their contents.
    """

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def __getitem__(self, images: list[int], /) -> "States":
        """Return the states of the images at these indices, in this order."""
        ...

    @property
    def nbytes(self) -> int:
        """Memory that the states take, in bytes."""
        ...


@dataclass(frozen=True)
class Caption:
    """One synthetic text."""

    text: str
    """The caption without the prompt."""
    logprob: float | None
    """Mean natural-log probability per generated token, the end token included; <= 0. None: unknown (an endpoint)."""
    finish: Literal["stop", "length"] = "stop"
    """stop: the captioner ended the text. length: it was cut off at the maximum length."""


@dataclass(frozen=True)
class Match:
    """How well a text fits an image. A score that the system does not compute is None."""

    itc: float | None = None
    """Cosine of the two embeddings, without temperature, in [-1, 1]."""
    itm: float | None = None
    """Softmax P(match) of a matching head, in [0, 1]."""
    vqa: float | None = None
    """P(yes) / (P(yes) + P(no)) of a model that is asked whether the text fits the image, in [0, 1]."""
    rank: float | None = None
    """An unbounded logit that orders texts, such as a reward model's."""


class System(Protocol):
    """A loaded model. `registry.load_system` loads one; a third party registers a `factory.SystemFactory`."""

    @property
    def card(self) -> ModelCard:
        """Roles, scores, licence and defaults of the loaded model."""
        ...

    @property
    def device(self) -> torch.device:
        """The device that the model computes on; cpu for an endpoint."""
        ...

    @property
    def input_key(self) -> Hashable:
        """Key of the input: two systems with equal keys prepare an image equally, so it is prepared once for both."""
        ...

    @property
    def encoder_key(self) -> Hashable:
        """Key of the encoder: two systems with equal keys (and equal `input_key`) encode an image equally.

        The image is then encoded once for both. Computing the key may be slow (a hash of the encoder's weights),
        because it is read once per worker.
        """
        ...

    @property
    def bytes_per_image(self) -> int:
        """Approximate memory per image, waiting and in use, in bytes. It bounds the batch size."""
        ...

    def prepare(self, image: Image.Image, file_bytes: bytes) -> Prepared:
        """Convert one image to the input of `encode`. Called by several threads at once.

        Args:
            image: upright, RGB.
            file_bytes: the encoded image as it is stored, for systems that pass it to an endpoint.
        """
        ...

    def encode(self, prepared: Sequence[Prepared]) -> States:
        """Encode B images -> B states in the same order. Called once per image, whatever the number of roles."""
        ...

    def share_encoder(self, other: "System") -> None:
        """Use the encoder of `other`, which has the same `encoder_key`, instead of an equal copy.

        This saves memory. A system without weights does nothing.
        """
        ...

    def release(self) -> None:
        """Free caches after memory has run out. Called between two batches."""
        ...


class Captioner(System, Protocol):
    """Writes captions (paper section 3.3)."""

    decoding: Decoding
    """The decoding method and its options. They may be set between two calls of `captions`."""

    def captions(self, states: States, uids: Sequence[str], samples: Sequence[int]) -> list[list[Caption]]:
        """Generate one caption per image and sample number.

        Noise is keyed on (decoding.seed, uid, sample, position), so that a caption does not depend on the other rows.

        Args:
            states: of B images, from this system's `encode`.
            uids: B row names.
            samples: numbers of the captions.

        Returns:
            B lists of len(samples) captions.

        Raises:
            InputError: the number of uids is not that of the images.
        """
        ...

    def measured(self, max_length: int | None = None, prompt: str | None = None) -> Decoding:
        """Return the decoding for captions that are to be evaluated (BLIP, section 5.2: beam search).

        Args:
            max_length: maximum number of tokens, prompt included; None: the system's own limit.
            prompt: start of each caption; None: the system's own.
        """
        ...


class Judge(System, Protocol):
    """Scores how well a text fits an image (paper section 3.3: the filter)."""

    def clean(self, text: str) -> str:
        """Clean a text in the same way as the system's training texts, for `match`. "" if nothing is left."""
        ...

    def match(self, states: States, texts: Sequence[Sequence[str]]) -> list[list[Match]]:
        """Score the texts of each image.

        Args:
            states: of B images, from this system's `encode`.
            texts: B lists of cleaned texts. A list may be empty, a text may not.

        Returns:
            B lists with one match per text.

        Raises:
            InputError: a text is empty, or the number of lists is not that of the images.
        """
        ...


class Embedder(System, Protocol):
    """Maps images to vectors whose cosine measures how similar two images are."""

    @property
    def embed_dim(self) -> int:
        """Length D of an embedding."""
        ...

    def embed(self, states: States) -> Tensor:
        """Embed B images -> (B, D) float32, L2-normalised."""
        ...


class EmbeddingJudge(Judge, Embedder, Protocol):
    """A judge that also embeds images. The score stage stores the results of both roles."""


class RetrievalJudge(EmbeddingJudge, Protocol):
    """A judge that `evaluation.evaluate_judge` can measure: it also embeds texts, and judges chosen pairs."""

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed T cleaned texts -> (T, D) float32, L2-normalised, in the space of `embed`.

        Raises:
            InputError: a text is empty.
        """
        ...

    def itm_logits(self, states: States, texts: Sequence[str], image_index: Sequence[int]) -> Tensor:
        """Judge cleaned text t with image `image_index[t]` of `states` -> (T, 2) float32 [no match, match]."""
        ...


class EvaluatedCaptioner(Captioner, Protocol):
    """A captioner that `evaluation.evaluate_captioner` can measure: it also finds the nearest training image."""

    def image_features(self, states: States) -> Tensor:
        """Return features whose cosine finds similar images: the embedding if there is one; (B, F) float32, any F."""
        ...
