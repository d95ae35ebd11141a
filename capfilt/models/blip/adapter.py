"""BLIP behind capfilt's protocols: PIL images and strings in, captions and scores out.

On a CPU in fp32, with one torch thread as the stages have, an image's captions, scores and embedding have the same bits
in every batch: images go through the tower one by one, texts are never padded, and products of rows give a row the same
bits whatever is beside it (`packed`). With more threads, on a GPU or in bf16 they agree but for rounding.

One core with AVX512, BLIP-base at 384 px, 20 tokens, an image: vision 1.12 s, one caption 0.28 s, five 0.73 s, ITC and
ITM of two texts 0.20 s.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from capfilt.config.decoding import Decoding
from capfilt.errors import ConfigError, InputError
from capfilt.models.blip import checkpoint
from capfilt.models.blip.config import MEDConfig
from capfilt.models.blip.cross import image_keys, use_absorbed
from capfilt.models.blip.decoding import generate
from capfilt.models.blip.image import ImageProcessor, read_processor
from capfilt.models.blip.med import MED
from capfilt.models.blip.ragged import first_tokens
from capfilt.models.blip.static import StaticDecoder
from capfilt.models.blip.tokenizer import TextTokenizer, read_tokenizer
from capfilt.models.blip.weight_cache import WeightCache
from capfilt.models.hub import resolve
from capfilt.models.protocols import Caption, Match, PixelBatch

TOKENS_A_PASS = 512
"""Text tokens of one ITM or ITC pass, about; bounds activations, and with them how many images have keys at once."""

ROWS_A_PASS = 64
"""Captions drawn together on a CPU, about; more are no faster there, and each has 2 MB of cache (BLIP-base)."""


class Blip:
    """Captioner, Matcher and Embedder, as far as the checkpoint has the parts (`roles`).

    `decoding` is a plain attribute: set it before `caption`.
    """

    def __init__(self, med: MED, tokenizer: TextTokenizer, processor: ImageProcessor, device: str = "cpu") -> None:
        self.med = med.eval().to(device)
        self.tokenizer, self.processor, self.device = tokenizer, processor, torch.device(device)
        self.decoding = Decoding()
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
        """(T, E) float32, L2-normalised. Raises InputError for an empty text, or none."""
        self.require("matcher")
        return self._text_features(self._ids(texts))

    @torch.inference_mode()
    def itm_logits(self, image_states: Tensor, texts: Sequence[str], image_index: Tensor) -> Tensor:
        """Text t judged with image `image_index[t]` -> (T, 2) float32: [no match, match]."""
        self.require("matcher")
        return self._itm(image_states, self._ids(texts), image_index.tolist())

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            raise InputError("no texts; give one or more")
        return self.tokenizer.ids(texts)

    def _text_features(self, rows: list[list[int]]) -> Tensor:
        found = [first_tokens(self.med.text, rows[part]) for part in _passes([len(row) for row in rows])]
        return self.med.text_head(torch.cat(found)).float()

    def _itm(self, image_states: Tensor, rows: list[list[int]], images: list[int]) -> Tensor:
        """(T, 2) float32; the texts of one image ask it together, images of few tokens apart from those of many."""
        rows = [[self.config.text.enc_id, *row[1:]] for row in rows]
        of: dict[int, list[int]] = {}
        for text, image in enumerate(images):
            of.setdefault(image, []).append(text)
        tokens = {image: sum(len(rows[text]) for text in texts) for image, texts in of.items()}
        logits = image_states.new_empty(len(rows), 2, dtype=torch.float32)
        for group in ([i for i in of if use_absorbed(tokens[i])], [i for i in of if not use_absorbed(tokens[i])]):
            for part in _passes([tokens[image] for image in group]):
                chosen = {image: of[image] for image in group[part]}
                self._itm_pass(logits, image_states, rows, chosen, max(tokens[image] for image in chosen))
        return logits

    def _itm_pass(
        self, logits: Tensor, image_states: Tensor, rows: list[list[int]], of: dict[int, list[int]], most: int
    ) -> None:
        """Fill in the logits of these images' texts, in several passes if it is one image with very many."""
        keys = image_keys(self.med.text, image_states[list(of)], most)
        texts = [text for image in of.values() for text in image]
        parts = _passes([len(rows[text]) for text in texts]) if len(of) == 1 else [slice(None)]
        for part in parts:
            some = [rows[text] for text in texts[part]]
            counts = [len(some)] if len(of) == 1 else [len(image) for image in of.values()]
            logits[texts[part]] = self.med.itm_head(first_tokens(self.med.text, some, keys, counts)).float()

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
        images = [i for i, row in enumerate(texts) for _ in row]
        rows = self._ids(flat)
        itc = (self.embed_images(image_states)[images] * self._text_features(rows)).sum(-1).tolist()
        itm = self._itm(image_states, rows, images).softmax(-1)[:, 1].tolist()
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
        return self.captions_of(self.encode_images(images), uids, samples)

    @torch.inference_mode()
    def captions_of(self, image_states: Tensor, uids: Sequence[str], samples: Sequence[int]) -> list[list[Caption]]:
        """`captions` of images that are already encoded: (B, P + 1, D), one uid an image."""
        self.require("captioner")
        prompt = self.tokenizer.prompt(self.decoding.prompt)
        at_once = max(ROWS_A_PASS // max(len(samples), 1), 1) if self.device.type == "cpu" else max(len(uids), 1)
        captions = []
        for start in range(0, len(uids), at_once):
            part = slice(start, start + at_once)
            drawn = generate(self.med, image_states[part], prompt, uids[part], self.decoding, samples, self._decoder())
            captions += [[Caption(self.tokenizer.decode(ids), p) for ids, p in row] for row in drawn]
        return captions

    def _decoder(self) -> StaticDecoder | None:
        """What decoding on a GPU keeps from batch to batch; another when the weights are others."""
        if self.device.type != "cuda":
            return None
        weights: list[Tensor] = [*self.med.text.parameters(), *self.med.lm_head.parameters()]
        return self._static.get(weights, lambda: StaticDecoder(self.med))


def _passes(sizes: Sequence[int]) -> Iterator[slice]:
    """Neighbours together, up to TOKENS_A_PASS in a slice, or one alone."""
    start = total = 0
    for i, size in enumerate(sizes):
        if i > start and total + size > TOKENS_A_PASS:
            yield slice(start, i)
            start, total = i, 0
        total += size
    if sizes:
        yield slice(start, len(sizes))
