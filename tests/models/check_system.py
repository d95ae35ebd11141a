"""`check_system`: what every system must do, whatever it is. Each system's tests call it."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any, cast

import pytest
import torch
from PIL import Image

from capfilt.errors import ConfigError, InputError
from capfilt.models.protocols import Captioner, EmbeddingJudge, Match, RetrievalJudge, System
from tests.pictures import photo

TEXTS = ["a red picture", "two dogs on the grass.", "the sea"]
UIDS = ["u", "v", "w"]


def check_system(system: System) -> None:
    """Run every method that the card promises on three images; AssertionError where one breaks its contract.

    On a CPU, with one torch thread.
    """
    assert system.card.roles
    assert hash(system.input_key) == hash(system.input_key)
    assert system.encoder_key == system.encoder_key
    assert system.bytes_per_image > 0
    system.release()
    states = encode(system, images())
    assert len(states) == 3
    assert states.nbytes > 0
    if "captioner" in system.card.roles:
        _check_captioner(cast(Captioner, system), states)
    if "judge" in system.card.roles:
        _check_judge(cast(EmbeddingJudge, system), states)
    if "embedder" in system.card.roles:
        _check_embedder(cast(EmbeddingJudge, system), states)
    for role in {"captioner", "judge", "embedder"} - set(system.card.roles):
        with pytest.raises(ConfigError, match=f"not {role}; name another model"):
            system.card.require(role)


def images() -> list[Image.Image]:
    """Three small pictures of different sizes."""
    return [Image.new("RGB", (20, 30), "red"), photo(seed=1), photo(seed=2).resize((50, 20))]


def encode(system: System, pictures: Sequence[Image.Image]) -> Any:
    """States of pictures, with the bytes of their files."""
    prepared = []
    for picture in pictures:
        buffer = BytesIO()
        picture.save(buffer, "PNG")
        prepared.append(system.prepare(picture, buffer.getvalue()))
    return system.encode(prepared)


def _check_captioner(system: Captioner, states: Any) -> None:
    system.decoding = system.decoding.model_copy(update={"max_length": 12, "min_length": 6})
    captions = system.captions(states, UIDS, [1, 0])
    assert [len(row) for row in captions] == [2, 2, 2]
    for caption in [caption for row in captions for caption in row]:
        assert caption.text == caption.text.strip()
        assert caption.logprob is None or caption.logprob <= 0
        assert caption.finish in ("stop", "length")
    assert system.captions(states, UIDS, []) == [[], [], []]
    with pytest.raises(InputError, match="uids"):
        system.captions(states, UIDS[:2], [0])
    if system.card.deterministic:
        assert system.captions(states, UIDS, [1, 0]) == captions
        assert [[row[1]] for row in captions] == system.captions(states, UIDS, [0])
        assert [captions[2], captions[0]] == system.captions(states[[2, 0]], ["w", "u"], [1, 0])
        other = system.captions(encode(system, images()[1:2]), ["v"], [1, 0])
        assert other == [captions[1]]
    system.decoding = system.measured(max_length=12)
    assert system.decoding.max_length >= 12 or system.decoding.method != "nucleus"
    assert len(system.captions(states, UIDS, [0])) == 3


def _check_judge(system: EmbeddingJudge, states: Any) -> None:
    cleaned = [system.clean(text) for text in TEXTS]
    assert [system.clean(text) for text in cleaned] == cleaned
    assert system.clean(" ") == ""
    asked = [cleaned, [], cleaned[:1]]
    matches = system.match(states, asked)
    assert [len(row) for row in matches] == [3, 0, 1]
    for match in matches[0] + matches[2]:
        _check_match(match, system.card.scores)
    assert system.match(states, [[], [], []]) == [[], [], []]
    with pytest.raises(InputError):
        system.match(states, [[""], [], []])
    with pytest.raises(InputError, match="texts"):
        system.match(states, asked[:2])
    if system.card.deterministic:
        assert system.match(states[[0]], [cleaned[:2]]) == [matches[0][:2]]
    if hasattr(system, "itm_logits"):
        _check_retrieval(cast(RetrievalJudge, system), states, cleaned, matches)


def _check_match(match: Match, scores: Sequence[str]) -> None:
    low = {"itc": -1.0, "itm": 0.0, "vqa": 0.0, "rank": float("-inf")}
    high = {"itc": 1.0, "itm": 1.0, "vqa": 1.0, "rank": float("inf")}
    for name in low:
        value = getattr(match, name)
        assert (value is not None) == (name in scores), f"{name} is {value}, the card's scores are {scores}"
        assert value is None or low[name] <= value <= high[name], f"{name} is {value}"


def _check_retrieval(system: RetrievalJudge, states: Any, texts: list[str], matches: list[list[Match]]) -> None:
    logits = system.itm_logits(states, [*texts, texts[0]], [0, 0, 0, 2])
    assert logits.shape == (4, 2)
    itm = torch.tensor([match.itm for match in matches[0] + matches[2]])
    torch.testing.assert_close(logits.cpu().softmax(-1)[:, 1], itm, atol=1e-5, rtol=0)
    itc = system.embed(states) @ system.embed_texts(texts).T
    assert itc.shape == (3, 3)
    want = torch.tensor([match.itc for match in matches[0]])
    torch.testing.assert_close(itc[0].cpu(), want, atol=1e-5, rtol=0)


def _check_embedder(system: EmbeddingJudge, states: Any) -> None:
    vectors = system.embed(states)
    assert vectors.shape == (3, system.embed_dim)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=-1).cpu(), torch.ones(3), atol=1e-4, rtol=0)
    if system.card.deterministic:
        assert torch.equal(system.embed(states[[1]])[0], vectors[1])
