"""BLIP behind capfilt's protocols: PIL images and strings in, captions and scores out.

On a CPU in fp32, with one torch thread as the stages have, an image's captions, scores and embedding have the same bits
in every batch: images go through the tower one by one, texts are never padded, and products of rows give a row the same
bits whatever is beside it (`packed`). With more threads, on a GPU or in bf16 they agree but for rounding.

One core with AVX512, BLIP-base at 384 px, 20 tokens, an image: vision 1.12 s, one caption 0.28 s, five 0.73 s, ITC and
ITM of two texts 0.20 s.
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
"""Most tokens of a caption, prompt counted (official code)."""

ROWS_A_PASS = 64
"""Captions drawn together on a CPU, about; more are no faster there, and each has 2 MB of cache (BLIP-base)."""


class Blip:
    """Captioner, judge and embedder, as far as the checkpoint has the parts (`roles`). See `models.protocols`.

    `decoding` is a plain attribute: set it before `caption`.
    """

    def __init__(
        self,
        med: MED,
        tokenizer: TextTokenizer,
        processor: ImageProcessor,
        device: str = "cpu",
        card: ModelCard | None = None,
    ) -> None:
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
        """From a folder, a name under `models/`, a hub id at a pinned revision, or an official `.pth` file.

        Args:
            model: what to load; `hub.resolve` says how it is found.
            revision: commit of a hub id that has no card.
            image_size: another input size in pixels than the checkpoint's; its positions are interpolated.
            device: where to run, as torch names it.
            tokenizer: folder or hub id with BERT's vocabulary, for a model that comes without (a `.pth` file).

        Raises:
            ConfigError: no such model, or no tokenizer. CheckpointError: its files are not a BLIP.
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
        """A folder in the hub layout: weights, config, tokenizer and processor files."""
        checkpoint.save(self.med, folder, dtype)
        self.tokenizer.save(folder)
        self.processor.save(folder)

    @property
    def config(self) -> MEDConfig:
        """The MED's shape."""
        return self.med.config

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return self.config.vision.image_size

    @property
    def roles(self) -> frozenset[str]:
        """Subset of {"captioner", "judge", "embedder"}."""
        return frozenset(self.card.roles)

    def require(self, role: str) -> None:
        """Raise ConfigError unless the checkpoint has that role."""
        self.card.require(role)

    @property
    def input_key(self) -> Hashable:
        """Size, mean and std of the pixels. See `System`."""
        return "blip", self.processor

    @property
    def encoder_key(self) -> Hashable:
        """The vision tower's shape and a hash of its weights, as they compute (precision). See `System`."""
        return "blip", self.input_key, self.config.vision, weights_hash(self.med.vision)

    def share_encoder(self, other: System) -> None:
        """Take the vision tower of another BLIP; nothing to do for another system. See `System`."""
        if isinstance(other, Blip):
            self.med.vision = other.med.vision

    @property
    def bytes_per_image(self) -> int:
        """About: pixels of three batches, states, their packed copies, the captions' caches."""
        vision = self.config.vision
        return 4 * 6 * (3 * vision.image_size**2 + (vision.grid**2 + 1) * vision.width)

    def release(self) -> None:
        """Free buffers and graphs of every decoder of this process, and what torch keeps for later on a GPU."""
        release_all()

    def prepare(self, image: Image.Image, file_bytes: bytes) -> Prepared:
        """{"pixels": (3, S, S) float32, normalised}."""
        return {"pixels": self.processor.one(image)}

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """PIL images -> (B, 3, S, S) float32, normalised."""
        return self.processor(images)

    def encode(self, prepared: Sequence[Prepared]) -> Tensor:
        """B images -> (B, P + 1, D): the vision tower, once per image."""
        return self.encode_images(stack(prepared, "pixels"))

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) float32 -> (B, P + 1, D): states for everything below."""
        states: Tensor = self.med.vision(pixels.to(self.device))
        return states

    @property
    def embed_dim(self) -> int:
        """Width of the common ITC space."""
        return self.config.embed_dim

    @torch.inference_mode()
    def embed(self, states: States) -> Tensor:
        """(B, P + 1, D) -> (B, E) float32, L2-normalised: the ITC feature of the image."""
        self.require("embedder")
        return self.med.image_features(tensor_of(states)).float()

    @torch.inference_mode()
    def image_features(self, states: States) -> Tensor:
        """(B, P + 1, D) -> (B, E): `embed`, or the mean over patches where the checkpoint has no encoder."""
        return self.embed(states) if self.config.encoder else tensor_of(states)[:, 1:].mean(dim=1)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """(T, E) float32, L2-normalised. Raises InputError for an empty text, or none."""
        self.require("judge")
        return judging.text_features(self.med, self._ids(texts))

    @torch.inference_mode()
    def itm_logits(self, states: States, texts: Sequence[str], image_index: Sequence[int]) -> Tensor:
        """Text t judged with image `image_index[t]` -> (T, 2) float32: [no match, match]."""
        self.require("judge")
        return judging.itm_logits(self.med, tensor_of(states), self._ids(texts), image_index)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            raise InputError("no texts; give one or more")
        return self.tokenizer.ids(texts)

    def clean(self, text: str) -> str:
        """`pre_caption` with 30 words, as in BLIP's retrieval data."""
        return pre_caption(text)

    def score(self, images: Tensor, texts: Sequence[Sequence[str]]) -> list[list[Match]]:
        """`match` of images that are not encoded yet, (B, 3, S, S) float32."""
        self.require("judge")
        return self.match(self.encode_images(images), texts)

    @torch.inference_mode()
    def match(self, states: States, texts: Sequence[Sequence[str]]) -> list[list[Match]]:
        """ITC raw cosine and ITM softmax P(match) of each image's texts; states (B, P + 1, D) and B lists of texts."""
        self.require("judge")
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
        """One caption per image (B, 3, S, S) that is not encoded yet; sampling is keyed on (seed, uid, sample)."""
        self.require("captioner")
        if len(images) != len(uids):
            raise InputError(f"{len(images)} images but {len(uids)} uids; give one uid per image")
        return [captions[0] for captions in self.captions(self.encode_images(images), uids, [sample])]

    @torch.inference_mode()
    def captions(self, states: States, uids: Sequence[str], samples: Sequence[int]) -> list[list[Caption]]:
        """For each image a caption per sample number, the prompt stripped; states (B, P + 1, D), one uid per image."""
        self.require("captioner")
        image_states, prompt = tensor_of(states), self.tokenizer.prompt(self._prompt(self.decoding.prompt))
        room = self.decoding.max_length - len(prompt)
        at_once = max(ROWS_A_PASS // max(len(samples), 1), 1) if self.device.type == "cpu" else max(len(uids), 1)
        captions = []
        for start in range(0, len(uids), at_once):
            part = slice(start, start + at_once)
            drawn = generate(self.med, image_states[part], prompt, uids[part], self.decoding, samples, self._decoder())
            captions += [[self._caption(ids, p, room) for ids, p in row] for row in drawn]
        return captions

    def _caption(self, ids: list[int], logprob: float, room: int) -> Caption:
        return Caption(self.tokenizer.decode(ids), logprob, "stop" if len(ids) < room else "length")

    def measured(self, max_length: int | None = None, prompt: str | None = None) -> Decoding:
        """Beam search, 3 beams, 5 to 30 tokens (section 5.2: to 20 on COCO), fewer where positions do not reach."""
        length = max_length or min(MAX_LENGTH, self.config.text.max_positions)
        return Decoding.measured(length, self._prompt(prompt))

    def _prompt(self, given: str | None) -> str:
        return given if given is not None else PROMPT if self.card.prompt is None else self.card.prompt

    def _decoder(self) -> StaticDecoder | None:
        """What decoding on a GPU keeps from batch to batch; another when the weights are others."""
        if self.device.type != "cuda":
            return None
        weights: list[Tensor] = [*self.med.text.parameters(), *self.med.lm_head.parameters()]
        return self._static.get(weights, lambda: StaticDecoder(self.med))
