"""Tiny BLIP folders written by transformers itself: model, tokenizer and processor, with weights that are not small."""

import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipProcessor,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

# [PAD] 0, [UNK] 100, [CLS] 101, [SEP] 102, [MASK] 103 as in BERT's own vocabulary
_WORDS = ["a", "picture", "of", "cat", "dog", "the", "on", "in", "red", "grass", "sit", "naive", "猫", *".,!'-()"]
_WORDS += ["caf", "##e", "##s", "##ing", "##ting"]
_PIECES = [*string.ascii_lowercase, *string.digits, *(f"##{c}" for c in string.ascii_lowercase + string.digits)]
VOCAB = [
    "[PAD]",
    *(f"[unused{i}]" for i in range(99)),
    *("[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *dict.fromkeys([*_PIECES, *_WORDS]),
]
TEXTS = ["a red cat", "the dog sitting on the grass, in a café!", "cats", "naïve: 3 dogs (or 4)"]


@dataclass(frozen=True)
class Shape:
    """Sizes of a tiny BLIP."""

    vision: tuple[int, int, int] = (48, 2, 3)
    """Width, layers, heads."""
    text: tuple[int, int, int] = (32, 2, 4)
    image_size: int = 32
    patch_size: int = 8
    embed_dim: int = 16
    eps: float = 1e-5

    def config(self) -> BlipConfig:
        (vw, vl, vh), (tw, tl, th) = self.vision, self.text
        vision = {
            "hidden_size": vw, "num_hidden_layers": vl, "num_attention_heads": vh, "intermediate_size": 2 * vw,
            "image_size": self.image_size, "patch_size": self.patch_size, "initializer_range": 0.02,
            "layer_norm_eps": self.eps,
        }  # fmt: skip
        text = {
            "vocab_size": len(VOCAB) + 2, "hidden_size": tw, "num_hidden_layers": tl, "num_attention_heads": th,
            "intermediate_size": 3 * tw, "max_position_embeddings": 64, "bos_token_id": len(VOCAB), "sep_token_id": 102,
        }  # fmt: skip
        return BlipConfig(vision_config=vision, text_config=text, image_text_hidden_size=self.embed_dim)


SHAPES = {
    "wide-vision": Shape(),
    "wide-text": Shape((24, 3, 2), (40, 1, 5), image_size=40, patch_size=10, embed_dim=8, eps=1e-6),
    "one-head": Shape((64, 1, 1), (64, 2, 1), image_size=48, patch_size=16, eps=1e-6),
}
CLASSES = {"filter": BlipForImageTextRetrieval, "captioner": BlipForConditionalGeneration}


def shake(model: torch.nn.Module, seed: int = 0) -> None:
    """Weights far from their initial values, so that a swapped or forgotten tensor shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.15 * torch.randn(parameter.shape, generator=generator)


def write_folder(folder: Path, kind: str, shape: Shape) -> Path:
    """A folder that transformers wrote: model of `kind`, vocabulary and processor."""
    torch.manual_seed(0)
    model = CLASSES[kind](shape.config())
    shake(model)
    model.save_pretrained(folder)
    write_processor(folder, shape.image_size)
    return folder


def write_processor(folder: Path, size: int) -> None:
    vocab = folder / "vocab.txt"
    folder.mkdir(parents=True, exist_ok=True)
    vocab.write_text("".join(f"{token}\n" for token in VOCAB), encoding="utf-8")
    images = BlipImageProcessorPil(size={"height": size, "width": size})
    BlipProcessor(images, BertTokenizer(vocab=str(vocab))).save_pretrained(folder)


Folders = Callable[..., Path]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """folders(kind, shape name) -> a folder by transformers, made once; nobody writes into it."""
    made: dict[tuple[str, str], Path] = {}

    def get(kind: str, shape: str = "wide-vision") -> Path:
        if (kind, shape) not in made:
            made[kind, shape] = write_folder(tmp_path_factory.mktemp(f"{kind}-{shape}"), kind, SHAPES[shape])
        return made[kind, shape]

    return get


@dataclass(frozen=True)
class Reference:
    """transformers' model and processor of a folder, asked the right questions (section 6 of the spec)."""

    model: Any
    processor: Any

    @classmethod
    def open(cls, folder: Path, kind: str, **kwargs: Any) -> "Reference":
        """The loading info must be clean."""
        model, info = CLASSES[kind].from_pretrained(folder, output_loading_info=True, **kwargs)
        assert not info["missing_keys"], info
        assert not info["mismatched_keys"], info
        assert all(key.startswith("text_decoder.") for key in info["unexpected_keys"]), info
        return cls(model.eval(), BlipProcessor.from_pretrained(folder))

    def tokens(self, texts: list[str], first: int | None = None) -> dict[str, Tensor]:
        """Padded batch; [DEC] is offset 0 and [ENC] offset 1 from bos at position 0, else [CLS]."""
        batch = dict(self.processor(text=texts, padding=True, return_tensors="pt"))
        if first is not None:
            batch["input_ids"][:, 0] = self.model.config.text_config.bos_token_id + first
        return batch

    @torch.no_grad()
    def itc(self, pixels: Tensor, texts: list[str], **kwargs: Any) -> Tensor:
        """(B, T) cosines."""
        return self.model(pixel_values=pixels, use_itm_head=False, **self.tokens(texts), **kwargs).itm_score

    @torch.no_grad()
    def itm(self, pixels: Tensor, texts: list[str], **kwargs: Any) -> Tensor:
        """(T, 2) logits of text t with image t."""
        return self.model(pixel_values=pixels, use_itm_head=True, **self.tokens(texts, 1), **kwargs).itm_score

    @torch.no_grad()
    def lm(self, pixels: Tensor, texts: list[str], **kwargs: Any) -> tuple[Tensor, Tensor]:
        """(T, L, V) logits of text t with image t, and the mask (T, L) of tokens that are no padding."""
        tokens = self.tokens(texts, 0)
        return self.model(pixel_values=pixels, **tokens, **kwargs).logits, tokens["attention_mask"].bool()


@pytest.fixture(scope="session")
def reference() -> type[Reference]:
    return Reference


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return list(TEXTS)


@pytest.fixture(scope="session")
def vocab() -> list[str]:
    return list(VOCAB)


@pytest.fixture
def pixels() -> Callable[[int, int], Tensor]:
    """pixels(count, size): normal noise, always the same."""

    def make(count: int, size: int) -> Tensor:
        return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))

    return make
