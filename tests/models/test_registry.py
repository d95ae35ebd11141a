"""Which system runs a model: by card, by config.json, by layout; a third party's by its entry point."""

import json
import shutil
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from capfilt.config.decoding import Decoding
from capfilt.config.pipeline import CaptionSettings, ModelSettings
from capfilt.errors import CheckpointError, ConfigError
from capfilt.models import registry
from capfilt.models.blip import Blip
from capfilt.models.factory import LoadRequest, SystemFactory
from capfilt.models.fake import FakeSystem
from capfilt.models.hub import resolve
from capfilt.models.protocols import System


class Mine(FakeSystem):
    """A third party's system."""


class MineFactory:
    """As a package would register it."""

    model_types = ("mine",)
    scores = ("vqa",)
    prompt = None

    def load(self, request: LoadRequest) -> System:
        return Mine(request.card, request.device)


FACTORY: SystemFactory = MineFactory()


@pytest.fixture
def fresh() -> Iterator[None]:
    """Entry points are looked up again, now and afterwards."""
    registry.factories.cache_clear()
    yield
    registry.factories.cache_clear()


def register(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    entry = EntryPoint(name, value, registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry] if group == registry.GROUP else [])


def folder_of(tmp_path: Path, kind: str) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    return tmp_path


def test_by_card_by_config_and_by_layout(tmp_path: Path) -> None:
    assert isinstance(registry.load_system("fake"), FakeSystem)
    assert isinstance(registry.load_system("tiny/filter"), Blip)
    assert isinstance(registry.load_system(resolve("tiny/captioner")), Blip)
    weights = tmp_path / "official.pth"
    weights.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"official\.pth: a file of weights has no tokenizer"):
        registry.load_system(weights)


def test_a_folder_s_own_card_decides(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "blip")
    (folder / "card.yaml").write_text("system: fake\nroles: [judge, embedder]\nscores: [itc, itm]\n")
    found = registry.load_system(folder)
    assert isinstance(found, FakeSystem)
    assert found.card.roles == ("judge", "embedder")


def test_unknown_systems_are_named_beside_the_known(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"config\.json has model_type 'llava', which no system reads; known: blip, fake"
    ):
        registry.load_system(folder_of(tmp_path, "llava"))
    (tmp_path / "card.yaml").write_text("system: llava")
    with pytest.raises(ConfigError, match="its card names the system 'llava'; known: blip, fake"):
        registry.load_system(tmp_path)
    with pytest.raises(ConfigError, match=r"tiny/filtr.*did you mean tiny/filter\?"):
        registry.load_system("tiny/filtr")


def test_a_folder_without_a_model_is_told_as_blip_tells_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        registry.load_system(tmp_path)


@pytest.mark.usefixtures("fresh")
def test_a_third_party_registers_by_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, "mine", f"{__name__}:FACTORY")
    assert isinstance(EntryPoint("mine", f"{__name__}:FACTORY", "").load(), MineFactory)
    folder = folder_of(tmp_path, "mine")
    (folder / "card.yaml").write_text("system: mine\nroles: [captioner]\n")
    assert type(registry.load_system(folder)).__name__ == "Mine"
    (folder / "card.yaml").unlink()
    assert type(registry.load_system(folder)).__name__ == "Mine"
    assert registry.judge_scores(ModelSettings(model=str(folder))) == {"vqa"}


@pytest.mark.usefixtures("fresh")
def test_a_script_registers_for_its_own_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTERED", {})
    registry.register("mine", FACTORY)
    (tmp_path / "card.yaml").write_text("system: mine\nroles: [captioner]\n")
    assert isinstance(registry.load_system(tmp_path), Mine)
    registry.register("blip", FACTORY)
    with pytest.raises(ConfigError, match=r"register\('blip'\): the name is in use"):
        registry.factories()


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("blip", "json:loads", "blip .*the name is in use"),
        ("mine", "nowhere:FACTORY", "mine .*cannot be loaded: .*nowhere"),
    ],
)
def test_a_broken_entry_point_is_named(name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, name, value)
    with pytest.raises(ConfigError, match=rf"entry point {message}"):
        registry.factories()


def test_a_captioner_draws_as_its_settings_say() -> None:
    settings = CaptionSettings(model="fake", decoding=Decoding(method="greedy"), seed=7)
    captioner = registry.load_captioner(settings)
    assert captioner.decoding == Decoding(method="greedy", seed=7)


def test_a_model_without_the_role_is_refused() -> None:
    with pytest.raises(ConfigError, match="tiny/filter has the roles embedder, judge, not captioner; name another"):
        registry.load_captioner(CaptionSettings(model="tiny/filter", device="cpu"))
    with pytest.raises(ConfigError, match="tiny/captioner has the roles captioner, not judge; name another"):
        registry.load_judge(ModelSettings(model="tiny/captioner", device="cpu"))


def test_scores_are_known_without_weights(tmp_path: Path) -> None:
    for model in ("fake", "tiny/filter", "Salesforce/blip-itm-large-coco"):
        assert registry.judge_scores(ModelSettings(model=model)) == {"itc", "itm"}
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(resolve("tiny/filter") / "config.json", bare)
    assert registry.judge_scores(ModelSettings(model=str(bare))) == {"itc", "itm"}
    (bare / "card.yaml").write_text("system: blip\nroles: [judge]\nscores: [itc]\n")
    assert registry.judge_scores(ModelSettings(model=str(bare))) == {"itc"}
