"""BLIP behind capfilt's protocols: PIL images and strings in, captions and scores out."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from capfilt.errors import ConfigError, InputError
from capfilt.models.blip import checkpoint
from capfilt.models.blip.config import MEDConfig
from capfilt.models.blip.decoding import generate
from capfilt.models.blip.image import ImageProcessor, read_processor
from capfilt.models.blip.layers import KV
from capfilt.models.blip.med import MED, select_kv
from capfilt.models.blip.tokenizer import TextTokenizer, read_tokenizer
from capfilt.models.decoding import Decoding
from capfilt.models.hub import resolve
from capfilt.models.protocols import Caption, Match, PixelBatch

TEXTS_A_PASS = 64
"""Texts judged in one ITM pass; bounds the expanded cross-attention keys and values."""


class Blip:
    """Captioner, Matcher and Embedder, as far as the checkpoint has the parts (`roles`).

    `decoding` is a plain attribute: set it before `caption`.
    """

    def __init__(self, med: MED, tokenizer: TextTokenizer, processor: ImageProcessor, device: str = "cpu") -> None:
        self.med = med.eval().to(device)
        self.tokenizer, self.processor, self.device = tokenizer, processor, torch.device(device)
        self.decoding = Decoding()

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
            revision: commit of a hub id that is not in `hub.REVISIONS`.
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
        return cls(med, read_tokenizer(words, med.config.text), processor, device)

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
        """Subset of {"captioner", "matcher", "embedder"}."""
        captioner = {"captioner"} if self.config.decoder else set()
        return frozenset(captioner | ({"matcher", "embedder"} if self.config.encoder else set()))

    def require(self, role: str) -> None:
        """Raise ConfigError unless the checkpoint has that role."""
        if role not in self.roles:
            raise ConfigError(
                f"this BLIP has the roles {', '.join(sorted(self.roles))}, not {role}; name another model"
            )

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB images -> (B, 3, S, S) float32."""
        return self.processor(images)

    @torch.inference_mode()
    def encode_images(self, pixels: PixelBatch) -> Tensor:
        """(B, 3, S, S) -> (B, P + 1, D): the vision tower, once an image, for everything below."""
        states: Tensor = self.med.vision(pixels.to(self.device))
        return states

    @torch.inference_mode()
    def embed_images(self, image_states: Tensor) -> Tensor:
        """(B, P + 1, D) -> (B, E) float32, L2-normalised."""
        self.require("matcher")
        return self.med.image_features(image_states).float()

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """(T, E) float32, L2-normalised. Raises InputError for an empty text."""
        self.require("matcher")
        return self.med.text_features(*self._tokens(texts)).float()

    @torch.inference_mode()
    def itm_logits(self, image_states: Tensor, texts: Sequence[str], image_index: Tensor) -> Tensor:
        """Text t judged with image `image_index[t]` -> (T, 2) float32: [no match, match]."""
        self.require("matcher")
        return self._itm(self.med.cross_kv(image_states), *self._tokens(texts), image_index)

    def _tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        ids, mask = self.tokenizer.batch(texts)
        return ids.to(self.device), mask.to(self.device)

    def _itm(self, image_kv: list[KV], ids: Tensor, mask: Tensor, image_index: Tensor) -> Tensor:
        parts = []
        for start in range(0, len(ids), TEXTS_A_PASS):
            part = slice(start, start + TEXTS_A_PASS)
            kv = select_kv(image_kv, image_index[part].to(self.device))
            parts.append(self.med.itm_logits(ids[part], mask[part], kv).float())
        return torch.cat(parts)

    @torch.inference_mode()
    def score(self, images: PixelBatch, texts: Sequence[Sequence[str]]) -> list[list[Match]]:
        """For each image the scores of each of its texts: ITC raw cosine, ITM softmax P(match)."""
        self.require("matcher")
        if len(images) != len(texts):
            raise InputError(f"{len(images)} images but texts for {len(texts)}; give one list of texts an image")
        return self.match(self.encode_images(images), texts)

    @torch.inference_mode()
    def match(self, image_states: Tensor, texts: Sequence[Sequence[str]]) -> list[list[Match]]:
        """`score` of images that are already encoded: (B, P + 1, D) and B lists of texts."""
        self.require("matcher")
        flat = [text for row in texts for text in row]
        if not flat:
            return [[] for _ in texts]
        index = torch.tensor([i for i, row in enumerate(texts) for _ in row], device=self.device)
        ids, mask = self._tokens(flat)
        itc = (self.embed_images(image_states)[index] * self.med.text_features(ids, mask).float()).sum(-1).tolist()
        itm = self._itm(self.med.cross_kv(image_states), ids, mask, index).softmax(-1)[:, 1].tolist()
        matches = iter([Match(itc=c, itm=p) for c, p in zip(itc, itm, strict=True)])
        return [[next(matches) for _ in row] for row in texts]

    @torch.inference_mode()
    def embed(self, images: PixelBatch) -> Tensor:
        """(B, E) float16, L2-normalised."""
        return self.embed_images(self.encode_images(images)).half()

    @torch.inference_mode()
    def caption(self, images: PixelBatch, uids: Sequence[str], sample: int = 0) -> list[Caption]:
        """One caption an image, the prompt stripped; sampling is keyed on (seed, uid, sample, position)."""
        return [captions[0] for captions in self.captions(images, uids, [sample])]

    @torch.inference_mode()
    def captions(self, images: PixelBatch, uids: Sequence[str], samples: Sequence[int]) -> list[list[Caption]]:
        """For each image one caption a sample number, each as `caption` gives it; the images are encoded once."""
        self.require("captioner")
        if len(images) != len(uids):
            raise InputError(f"{len(images)} images but {len(uids)} uids; give one uid an image")
        image_kv = self.med.cross_kv(self.encode_images(images))
        prompt = self.tokenizer.prompt(self.decoding.prompt)
        drawn = [generate(self.med, image_kv, prompt, uids, self.decoding, sample) for sample in samples]
        return [[Caption(self.tokenizer.decode(ids), p) for ids, p in row] for row in zip(*drawn, strict=True)]
