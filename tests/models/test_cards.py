"""Model cards: those that ship are complete and true, a wrong one is named with its key."""

import re
from pathlib import Path

import pytest

from capfilt.errors import ConfigError
from capfilt.models.blip import Blip
from capfilt.models.card import cards, find_card, read_card
from capfilt.models.digest import weights_digest
from capfilt.models.hub import shipped

ROOT = Path(__file__).parents[2] / "models"
FILES = sorted(ROOT.rglob("*.yaml"))


def test_every_shipped_model_has_a_card_and_every_card_is_found() -> None:
    assert set(shipped()) == {"tiny/captioner", "tiny/filter", "tiny/pretrained"}
    assert set(shipped()) | {"fake"} < set(cards())
    assert {file.relative_to(ROOT).with_suffix("").as_posix() for file in FILES} == set(cards())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_card_has_the_name_of_its_file_and_what_a_run_needs(file: Path) -> None:
    card = read_card(file, "")
    assert card.name == file.relative_to(ROOT).with_suffix("").as_posix()
    assert card.licence
    assert bool(card.scores) == ("judge" in card.roles)
    if "/" in card.name and not card.name.startswith("tiny/"):
        assert card.revision is not None
        assert re.fullmatch(r"[0-9a-f]{40}", card.revision)


@pytest.mark.parametrize("name", shipped())
def test_what_a_card_says_is_what_the_checkpoint_has(name: str) -> None:
    blip = Blip.load(name)
    assert blip.card == find_card(name)
    assert blip.card.prompt == ("a picture of " if "captioner" in blip.roles else None)
    assert blip.card.decoding in (None, blip.decoding)


def test_a_card_is_no_part_of_the_digest(tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(ROOT / "tiny/filter", tmp_path / "filter"))
    before = weights_digest(str(folder))
    assert find_card(folder) is None
    (folder / "card.yaml").write_text("system: blip\nroles: [judge, embedder]\nlicence: MIT\n")
    assert weights_digest(str(folder)) == before
    found = find_card(folder)
    assert found is not None
    assert (found.name, found.licence) == (str(folder), "MIT")
    assert Blip.load(folder).card.licence == "MIT"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("roles: [captioner]", "system"),
        ("system: blip\nroles: [matcher]", r"roles\.0"),
        ("system: blip\nrevision: main", "revision"),
        ("system: blip\ncolour: red", "colour"),
        ("- a list", "expected a mapping"),
    ],
)
def test_a_wrong_card(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "card.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"card\.yaml.*{message}"):
        find_card(tmp_path)
