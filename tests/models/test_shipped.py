"""The weights that ship: small, whole, with cards, and opened by transformers as well as by capfilt."""

import re
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval

from capfilt.models.blip import Blip
from capfilt.models.hub import shipped

MODELS = Path(__file__).parents[2] / "models"
ROLES = {
    "pretrained": {"captioner", "judge", "embedder"},
    "captioner": {"captioner"},
    "filter": {"judge", "embedder"},
}


def test_their_names() -> None:
    assert {f"tiny/{name}" for name in ROLES} <= set(shipped())


@pytest.mark.parametrize("name", ROLES)
def test_size_roles_and_card(name: str) -> None:
    folder = MODELS / "tiny" / name
    assert (folder / "model.safetensors").stat().st_size <= 12_000_000
    assert Blip.load(f"tiny/{name}").roles == ROLES[name]
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense: cc-by-4.0\n")
    assert re.search(r"<!-- metrics -->\n\| metric .*<!-- /metrics -->", card, re.S)


@pytest.mark.parametrize(
    ("name", "kind"), [("captioner", BlipForConditionalGeneration), ("filter", BlipForImageTextRetrieval)]
)
def test_transformers_opens_them_whole(name: str, kind: type[transformers.PreTrainedModel]) -> None:
    model, told = kind.from_pretrained(MODELS / "tiny" / name, output_loading_info=True)
    assert not any(told.values())
    assert model.dtype == torch.float32


def test_a_caption_and_its_scores() -> None:
    image = Image.radial_gradient("L").convert("RGB")
    captioner, judge = Blip.load("tiny/captioner"), Blip.load("tiny/filter")
    caption = captioner.caption(captioner.preprocess([image]), ["x"])[0]
    assert caption.text
    assert caption.logprob < 0
    match = judge.score(judge.preprocess([image]), [[caption.text]])[0][0]
    assert match.itc is not None
    assert match.itm is not None
    assert -1 <= match.itc <= 1
    assert 0 <= match.itm <= 1
