"""BLIP as a system of capfilt (`models.protocols`): PIL images and strings in, captions and scores out.

On a CPU in fp32 or int8, with one torch thread as in the stages, an image's captions, scores and embedding have the
same bits in every batch: the tower takes few images at a time, texts are never padded, and a row of a matrix product
has the same bits whatever the other rows (`packed`, `int8`). With more threads, on a GPU or in bf16, batches differ by
rounding.

Time per image on one core with AVX512 (BLIP-base at 384 px, 20 tokens): vision 1.12 s, one caption 0.28 s, five 0.73 s,
ITC and ITM of two texts 0.20 s.
"""

from collections.abc import Hashable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from capfilt.config.decoding import Decoding
from capfilt.errors import ConfigError, InputError
from capfilt.media.text import pre_caption
from capfilt.models.blip import checkpoint, judging
from capfilt.models.blip.config import MEDConfig
from capfilt.models.blip.decoding import generate
from capfilt.models.blip.identity import PROMPT, card_of, weights_hash
from capfilt.models.blip.image import ImageProcessor, read_processor
from capfilt.models.blip.med import MED
from capfilt.models.blip.static import StaticDecoder, release_all
from capfilt.models.blip.tokenizer import TextTokenizer, read_tokenizer
from capfilt.models.blip.weight_cache import WeightCache
from capfilt.models.card import ModelCard, find_card
from capfilt.models.hub import resolve
from capfilt.models.protocols import Caption, Match, Prepared, States, System
from capfilt.models.tensors import stack, tensor_of

MAX_LENGTH = 30
"""Maximum number of tokens of a caption, prompt included (official code)."""

ROWS_PER_PASS = 64
"""About how many captions a CPU generates together. More are no faster, and each has 2 MB of cache (BLIP-base)."""


class Blip:
    """Captioner, judge and embedder, as far as the checkpoint has the weights for them (`roles`).

    See `models.protocols`. Set the attribute `decoding` before `caption` or `captions` to change how they decode.
    """

    def __init__(
        self,
        med: MED,
        tokenizer: TextTokenizer,
        processor: ImageProcessor,
        device: str = "cpu",
        card: ModelCard | None = None,
    ) -> None:
        """Combine a model with its tokenizer and image processor.

        Args:
            med: moved to `device` and put in eval mode.
            tokenizer: of the model's vocabulary.
            processor: with the model's image size.
            device: as torch names it.
            card: prompt, licence and defaults; None: a card with BLIP's prompt. Roles are those of the weights.
        """
        self.med = med.eval().to(device)
        self.tokenizer, self.processor, self.device = tokenizer, processor, torch.device(device)
        self.decoding = Decoding()
        self.card = card_of(med.config, self.device, card)
        self._static: WeightCache[StaticDecoder] = WeightCache()

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        revision: str | None = None,
        image_size: int | None = None,
        device: str = "cpu",
        tokenizer: str | Path | None = None,
    ) -> "Blip":
        """Load a folder, a name under `models/`, a hub id at a pinned revision, or an official `.pth` file.

        Args:
            model: what to load; `hub.resolve` describes how it is found.
            revision: commit of a hub id that has no card.
            image_size: side of the input in pixels, if not the checkpoint's; position embeddings are interpolated.
            device: where to run, as torch names it.
            tokenizer: folder or hub id with BERT's vocabulary, for a model that comes without one (a `.pth` file).

        Raises:
            ConfigError: no such model, or no tokenizer.
            CheckpointError: its files are not a BLIP.
        """
        path = resolve(model, revision)
        if path.is_file() and tokenizer is None:
            raise ConfigError(
                f"{path}: a file of weights has no tokenizer; add tokenizer: a folder with BERT's vocab.txt, "
                "or google-bert/bert-base-uncased"
            )
        words = path if tokenizer is None else resolve(tokenizer, weights=False)
        med = checkpoint.load(path, image_size=image_size)
        processor = read_processor(path, med.config.vision.image_size)
        card = find_card(model) or ModelCard(name=str(model), system="blip", prompt=PROMPT)
        return cls(med, read_tokenizer(words, med.config.text), processor, device, card)

    def save(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Write a folder in the hub layout: weights (stored as `dtype`), config, tokenizer and processor files."""
        checkpoint.save(self.med, folder, dtype)
        self.tokenizer.save(folder)
        self.processor.save(folder)

    @property
    def config(self) -> MEDConfig:
        """Shape of the model."""
        return self.med.config

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return self.config.vision.image_size

    @property
    def roles(self) -> frozenset[str]:
        """The model's roles, among "captioner", "judge" and "embedder"."""
        return frozenset(self.card.roles)

    @property
    def input_key(self) -> Hashable:
        """Size, mean and std of the input pixels. See `System.input_key`."""
        return "blip", self.processor

    @property
    def encoder_key(self) -> Hashable:
        """Shape of the vision tower and a hash of its weights in their precision. See `System.encoder_key`."""
        return "blip", self.input_key, self.config.vision, weights_hash(self.med.vision)

    def share_encoder(self, other: System) -> None:
        """Use the vision tower of another BLIP; do nothing for another system. See `System.share_encoder`."""
        if isinstance(other, Blip):
            self.med.vision = other.med.vision

    @property
    def bytes_per_image(self) -> int:
        """Estimated bytes of an image: pixels of three batches, states, their packed copies, the decoder's caches."""
        vision = self.config.vision
        return 4 * 6 * (3 * vision.image_size**2 + (vision.grid**2 + 1) * vision.width)

    def release(self) -> None:
        """Free buffers and graphs of every decoder of this process, and torch's cached GPU memory."""
        release_all()

    def prepare(self, image: Image.Image, file_bytes: bytes) -> Prepared:
        """Return {"pixels": (3, S, S) float32, normalised}."""
        return {"pixels": self.processor.one(image)}

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Convert B PIL images to pixels, (B, 3, S, S) float32, normalised."""
        return self.processor(images)

    def encode(self, prepared: Sequence[Prepared]) -> Tensor:
        """Encode B prepared images with the vision tower -> (B, P + 1, D)."""
        return self.encode_images(stack(prepared, "pixels"))

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Encode pixels (B, 3, S, S) float32 -> states (B, P + 1, D), the input of `match`, `captions` and `embed`."""
        states: Tensor = self.med.vision(pixels.to(self.device))
        return states

    @property
    def embed_dim(self) -> int:
        """Width E of the common ITC space."""
        return self.config.embed_dim

    @torch.inference_mode()
    def embed(self, states: States) -> Tensor:
        """Return the ITC features of image states (B, P + 1, D) -> (B, E) float32, L2-normalised."""
        self.card.require("embedder")
        return self.med.image_features(tensor_of(states)).float()

    @torch.inference_mode()
    def image_features(self, states: States) -> Tensor:
        """Return `embed`, (B, E), or the mean over the patches, (B, D), if the model has no encoder half."""
        return self.embed(states) if self.config.encoder else tensor_of(states)[:, 1:].mean(dim=1)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed T cleaned texts -> (T, E) float32, L2-normalised. Raises InputError for an empty text, or no texts."""
        self.card.require("judge")
        return judging.text_features(self.med, self._ids(texts))

    @torch.inference_mode()
    def itm_logits(self, states: States, texts: Sequence[str], image_index: Sequence[int]) -> Tensor:
        """See `RetrievalJudge.itm_logits`."""
        self.card.require("judge")
        return judging.itm_logits(self.med, tensor_of(states), self._ids(texts), image_index)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            raise InputError("no texts; give one or more")
        return self.tokenizer.ids(texts)

    def clean(self, text: str) -> str:
        """Apply `pre_caption` with 30 words, as in BLIP's retrieval data."""
        return pre_caption(text)

    def score(self, images: Tensor, texts: Sequence[Sequence[str]]) -> list[list[Match]]:
        """Encode images (B, 3, S, S) float32 and score the texts of each. See `match`."""
        self.card.require("judge")
        return self.match(self.encode_images(images), texts)

    @torch.inference_mode()
    def match(self, states: States, texts: Sequence[Sequence[str]]) -> list[list[Match]]:
        """Return ITC (cosine) and ITM (softmax P(match)) of each image's texts. See `Judge.match`."""
        self.card.require("judge")
        if len(texts) != len(states):
            raise InputError(f"{len(states)} images but texts for {len(texts)}; give one list of texts per image")
        flat = [text for row in texts for text in row]
        if not flat:
            return [[] for _ in texts]
        image_states, images = tensor_of(states), [i for i, row in enumerate(texts) for _ in row]
        rows = self._ids(flat)
        itc = (self.embed(image_states)[images] * judging.text_features(self.med, rows)).sum(-1).tolist()
        itm = judging.itm_logits(self.med, image_states, rows, images).softmax(-1)[:, 1].tolist()
        matches = iter([Match(itc=c, itm=p) for c, p in zip(itc, itm, strict=True)])
        return [[next(matches) for _ in row] for row in texts]

    def caption(self, images: Tensor, uids: Sequence[str], sample: int = 0) -> list[Caption]:
        """Encode B images (B, 3, S, S) float32 and generate caption number `sample` of each. See `captions`."""
        return [captions[0] for captions in self.captions(self.encode_images(images), uids, [sample])]

    @torch.inference_mode()
    def captions(self, states: States, uids: Sequence[str], samples: Sequence[int]) -> list[list[Caption]]:
        """See `Captioner.captions`."""
        self.card.require("captioner")
        if len(uids) != len(states):
            raise InputError(f"{len(states)} images but {len(uids)} uids; give one uid per image")
        image_states, prompt = tensor_of(states), self.tokenizer.prompt(self._prompt(self.decoding.prompt))
        room = self.decoding.max_length - len(prompt)
        at_once = max(ROWS_PER_PASS // max(len(samples), 1), 1) if self.device.type == "cpu" else max(len(uids), 1)
        captions = []
        for start in range(0, len(uids), at_once):
            part = slice(start, start + at_once)
            drawn = generate(self.med, image_states[part], prompt, uids[part], self.decoding, samples, self._decoder())
            captions += [[self._caption(ids, p, room) for ids, p in row] for row in drawn]
        return captions

    def _caption(self, ids: list[int], logprob: float, room: int) -> Caption:
        return Caption(self.tokenizer.decode(ids), logprob, "stop" if len(ids) < room else "length")

    def measured(self, max_length: int | None = None, prompt: str | None = None) -> Decoding:
        """Return beam search with 3 beams and 5 to 30 tokens (section 5.2: to 20 on COCO). See `Captioner.measured`."""
        length = max_length or min(MAX_LENGTH, self.config.text.max_positions)
        return Decoding.measured(length, self._prompt(prompt))

    def _prompt(self, given: str | None) -> str:
        return given if given is not None else PROMPT if self.card.prompt is None else self.card.prompt

    def _decoder(self) -> StaticDecoder | None:
        """Return the decoder that is kept from batch to batch on a GPU, a new one if the weights have changed."""
        if self.device.type != "cuda":
            return None
        weights: list[Tensor] = [*self.med.text.parameters(), *self.med.lm_head.parameters()]
        return self._static.get(weights, lambda: StaticDecoder(self.med))
