"""The fake system: sees colours, reads their names, and is a whole system."""

import pytest
from PIL import Image

from capfilt.errors import InputError
from capfilt.models.digest import weights_digest
from capfilt.models.fake import COLOURS, WRONG, FakeSystem
from capfilt.models.hub import is_here
from capfilt.models.protocols import EvaluatedCaptioner, RetrievalJudge
from tests.models.check_system import check_system, encode


def test_it_is_a_system_with_all_roles() -> None:
    fake = FakeSystem()
    judge: RetrievalJudge = fake
    captioner: EvaluatedCaptioner = fake
    assert set(judge.card.roles) == set(captioner.card.roles) == {"captioner", "judge", "embedder"}
    check_system(fake)


def squares() -> list[Image.Image]:
    """One of each colour, a third of each black or white."""
    made = []
    for name, colour in COLOURS.items():
        image = Image.new("RGB", (30, 30), "white" if name == "black" else "black")
        image.paste(colour, (0, 0, 30, 20))
        made.append(image)
    return made


def test_a_text_that_names_the_colour_fits_and_another_does_not() -> None:
    fake, names = FakeSystem(), list(COLOURS)
    states = encode(fake, squares())
    right = [[f"a {name} picture"] for name in names]
    wrong = [["a red picture" if name == "cyan" else "a cyan picture"] for name in names]
    for [match], [other], [none] in zip(
        fake.match(states, right),
        fake.match(states, wrong),
        fake.match(states, [["a thing"]] * len(names)),
        strict=True,
    ):
        assert match.itm is not None
        assert other.itm is not None
        assert none.itm is not None
        assert match.itm > 0.75 > 0.5 > none.itm
        assert other.itm < 0.5


def test_captions_name_the_colour_and_some_drawn_ones_do_not() -> None:
    fake, names = FakeSystem(), list(COLOURS)
    states, uids = encode(fake, squares()), [f"{i}" for i in range(len(names))]
    fake.decoding = fake.measured()
    assert [row[0].text for row in fake.captions(states, uids, [0])] == [f"a {name} picture" for name in names]
    fake.decoding = FakeSystem().decoding
    drawn = fake.captions(states, uids, range(100))
    right = sum(name in caption.text.split() for name, row in zip(names, drawn, strict=True) for caption in row)
    assert 1 - 2 / WRONG < right / (100 * len(names)) < 1 - 0.5 / WRONG
    fake.decoding = fake.decoding.model_copy(update={"seed": 1})
    assert fake.captions(states, uids, range(100)) != drawn


def test_its_digest_is_its_version_and_it_needs_no_file() -> None:
    assert weights_digest("fake") == weights_digest("fake")
    assert len(weights_digest("fake")) == 16
    assert is_here("fake")


def test_wrong_input() -> None:
    fake = FakeSystem()
    states = encode(fake, squares()[:2])
    with pytest.raises(InputError, match="2 images but texts for 1"):
        fake.match(states, [["a"]])
    with pytest.raises(InputError, match="no texts"):
        fake.embed_texts([])
