"""Example of a model system: it writes "a bright picture" or "a dark picture", and embeds images as thumbnails."""

from collections.abc import Hashable, Sequence

import torch
from PIL import Image
from torch import Tensor

from capfilt.config.decoding import Decoding
from capfilt.errors import InputError
from capfilt.models.card import ModelCard
from capfilt.models.factory import LoadRequest
from capfilt.models.protocols import Caption, Prepared, States, System
from capfilt.models.tensors import stack, tensor_of

CARD = ModelCard(
    name="thumbnail", system="thumbnail", roles=("captioner", "embedder"), licence="Apache-2.0", version="1"
)
SIDE = 8


class ThumbnailSystem:
    """Captioner and embedder over the grey values of a thumbnail."""

    embed_dim = SIDE * SIDE
    bytes_per_image = 4 * SIDE * SIDE
    input_key: Hashable = ("thumbnail", SIDE)
    encoder_key: Hashable = ("thumbnail", SIDE)

    def __init__(self, card: ModelCard, device: str) -> None:
        self.card, self.device, self.decoding = card, torch.device(device), Decoding()

    def prepare(self, image: Image.Image, file_bytes: bytes) -> Prepared:
        """Run everything that needs no weights, in the decoding threads."""
        grey = image.convert("L").resize((SIDE, SIDE))
        return {"grey": torch.tensor(list(grey.tobytes()), dtype=torch.float32) / 255}

    def encode(self, prepared: Sequence[Prepared]) -> Tensor:
        """Encode B images, once for all roles. Here the result is (B, 64); a real model runs its vision tower."""
        return stack(prepared, "grey").to(self.device)

    def captions(self, states: States, uids: Sequence[str], samples: Sequence[int]) -> list[list[Caption]]:
        """Return one caption per image and sample. A model that samples keys its noise on (seed, uid, sample)."""
        if len(uids) != len(states):
            raise InputError(f"{len(states)} images but {len(uids)} uids")
        words = ["bright" if grey.mean() > 0.5 else "dark" for grey in tensor_of(states)]
        return [[Caption(f"a {word} picture", logprob=None) for _ in samples] for word in words]

    def measured(self, max_length: int | None = None, prompt: str | None = None) -> Decoding:
        """Return how captions are drawn when they are evaluated."""
        return Decoding(method="beam")

    def embed(self, states: States) -> Tensor:
        """Return (B, D), L2-normalised; near-duplicates are found by their cosine."""
        grey = tensor_of(states)
        return torch.nn.functional.normalize(grey - grey.mean(1, keepdim=True) + 1e-6)

    def share_encoder(self, other: System) -> None:
        """Nothing to share: there are no weights."""

    def release(self) -> None:
        """Nothing to free."""


class ThumbnailFactory:
    """What is registered: which models the system reads, and how one is loaded."""

    model_types = ("thumbnail",)  # values of `model_type` in config.json
    scores = ()  # it is no judge
    prompt = None

    def load(self, request: LoadRequest) -> ThumbnailSystem:
        """Load the weights that the request names; here there are none."""
        return ThumbnailSystem(request.card or CARD, request.device)


FACTORY = ThumbnailFactory()
