"""What the pipeline knows of a model: a `System`, and the roles that it may have (`Captioner`, `Judge`, `Embedder`).

A system is any object with these methods; it inherits from nothing here. `capfilt.models.fake` is a whole one in a few
lines. Images go through it in three steps, so that each is done once whatever asks for it: `prepare` in the decoding
threads, `encode` once per image, then the methods of a role on the encoded states.

A score that a system does not have is None, never 0.
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
"""One image as its system wants it: named tensors, which are copied to the system's device, or bytes for an endpoint.
Nobody but the system that made it looks inside."""


class States(Protocol):
    """Encoded images, in order. A tensor whose first dimension is the image is one; so is a NumPy array.

    Nobody but the system that made them looks inside.
    """

    def __len__(self) -> int:
        """Number of images."""
        ...

    def __getitem__(self, images: list[int], /) -> "States":
        """The states of the images with these numbers."""
        ...

    @property
    def nbytes(self) -> int:
        """Memory that they take, bytes."""
        ...


@dataclass(frozen=True)
class Caption:
    """One synthetic text."""

    text: str
    """Without the prompt."""
    logprob: float | None
    """Mean natural-log probability per generated token, the end token included; <= 0. None: not known (an endpoint)."""
    finish: Literal["stop", "length"] = "stop"
    """stop: the captioner ended it. length: it was cut off at the greatest length."""


@dataclass(frozen=True)
class Match:
    """How well a text fits an image; None where the system has no such score."""

    itc: float | None = None
    """Cosine of the two embeddings, without temperature, in [-1, 1]."""
    itm: float | None = None
    """Softmax P(match) of a matching head, in [0, 1]."""
    vqa: float | None = None
    """P(yes) / (P(yes) + P(no)) of a model that is asked whether the text fits, in [0, 1]."""
    rank: float | None = None
    """An unbounded logit that orders texts, such as a reward model's."""


class System(Protocol):
    """A loaded model. `registry.load_system` makes one; `registry.SystemFactory` is what a third party registers."""

    @property
    def card(self) -> ModelCard:
        """Roles, scores, licence and defaults of this very model."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes; cpu for an endpoint."""
        ...

    @property
    def input_key(self) -> Hashable:
        """Two systems with equal keys give an equal `Prepared` of the same image: it is then prepared once for both."""
        ...

    @property
    def encoder_key(self) -> Hashable:
        """Two systems with equal keys (and equal `input_key`) give equal states: images are then encoded once for both.

        May be slow (a hash of the encoder's weights): it is asked for once per worker.
        """
        ...

    @property
    def bytes_per_image(self) -> int:
        """About how much memory an image takes while it waits and is worked on, in bytes: bounds the batch size."""
        ...

    def prepare(self, image: Image.Image, file_bytes: bytes) -> Prepared:
        """What `encode` takes of one image. Called by several threads at once.

        Args:
            image: upright, RGB.
            file_bytes: the encoded image as it is stored, for systems that send it on.
        """
        ...

    def encode(self, prepared: Sequence[Prepared]) -> States:
        """States of B images, in their order; called once per image, for every role."""
        ...

    def share_encoder(self, other: "System") -> None:
        """Use the encoder of `other`, which has the same `encoder_key`, in place of an equal copy.

        Saves memory; a system without weights does nothing.
        """
        ...

    def release(self) -> None:
        """Free caches: memory ran out. Called between two batches."""
        ...


class Captioner(System, Protocol):
    """Writes captions (paper section 3.3)."""

    decoding: Decoding
    """How captions are drawn; may be set between two calls of `captions`."""

    def captions(self, states: States, uids: Sequence[str], samples: Sequence[int]) -> list[list[Caption]]:
        """For each of B images one caption per sample number.

        Noise is keyed on (decoding.seed, uid, sample, position), so that a caption does not depend on the other rows.

        Args:
            states: of this system's `encode`, B images.
            uids: B row names.
            samples: numbers of the captions.

        Returns:
            B lists of len(samples) captions.
        Raises:
            InputError: another number of uids than of images.
        """
        ...

    def measured(self, max_length: int | None = None, prompt: str | None = None) -> Decoding:
        """How captions that are to be measured are drawn (BLIP, section 5.2: beam search).

        Args:
            max_length: most tokens, prompt included; by default the system's own limit.
            prompt: by default the system's own.
        """
        ...


class Judge(System, Protocol):
    """Says how well a text fits an image (paper section 3.3: the filter)."""

    def clean(self, text: str) -> str:
        """The text as `match` takes it: as the system's training texts were cleaned. "" if nothing is left."""
        ...

    def match(self, states: States, texts: Sequence[Sequence[str]]) -> list[list[Match]]:
        """The scores of each image's texts.

        Args:
            states: of this system's `encode`, B images.
            texts: B lists of cleaned texts, none of them empty; a list may be.

        Returns:
            B lists, a match per text.
        Raises:
            InputError: an empty text, or another number of lists than of images.
        """
        ...


class Embedder(System, Protocol):
    """Maps images to vectors whose cosine tells how alike two images are."""

    @property
    def embed_dim(self) -> int:
        """D, the length of an embedding."""
        ...

    def embed(self, states: States) -> Tensor:
        """(B, D) float32, L2-normalised, for B images."""
        ...


class EmbeddingJudge(Judge, Embedder, Protocol):
    """A judge that embeds images too: what the score stage stores comes from both roles."""


class RetrievalJudge(EmbeddingJudge, Protocol):
    """What `evaluation.evaluate_judge` needs beyond a judge: retrieval over all texts, re-ranking of chosen pairs."""

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Cleaned texts -> (T, D) float32, L2-normalised, in the space of `embed`. Raises InputError: an empty one."""
        ...

    def itm_logits(self, states: States, texts: Sequence[str], image_index: Sequence[int]) -> Tensor:
        """(T, 2) float32 [no match, match]: text t (cleaned) judged with image `image_index[t]` of `states`."""
        ...


class EvaluatedCaptioner(Captioner, Protocol):
    """What `evaluation.evaluate_captioner` needs beyond a captioner: the nearest training image, for a baseline."""

    def image_features(self, states: States) -> Tensor:
        """(B, F) float32, for any F: features whose cosine finds similar images; the embedding where there is one."""
        ...
