import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, ValidationError

from capfilt.config.yaml_file import describe, override
from capfilt.errors import ConfigError


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    depth: int = 1


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    parts: list[Inner] = []
    inner: Inner | None = None


def told(raw: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(raw)
    return describe(caught.value, "file.yaml", Outer)


def test_overrides_reach_into_mappings_and_lists_and_parse_yaml() -> None:
    raw: Any = {"a": {"b": [1, {"c": 2}]}, "n": None}
    for setting in ("a.b.1.c=1e3", "a.b.0=[x, y]", "n.new.key=true", "a.text=a=b", "empty="):
        override(raw, setting)
    assert raw == {
        "a": {"b": [["x", "y"], {"c": "1e3"}], "text": "a=b"},
        "n": {"new": {"key": True}},
        "empty": None,
    }


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("a.b", "write it as key.key=value"),
        ("=1", "write it as key.key=value"),
        ("a..b=1", "write it as key.key=value"),
        ("a.2.c=1", "'2' is no index of a list of 1"),
        ("a.x=1", "'x' is no index of a list of 1"),
        ("a.²=1", "'²' is no index of a list of 1"),
        ("b.c.d=1", "below a str"),
        ("b.c=1", "b is a str, not a mapping or list"),
        ("b=[1", "the value is not YAML"),
    ],
)
def test_bad_overrides_say_why(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        override({"a": [0], "b": "text"}, setting)
    assert str(caught.value).startswith(f"--set {setting}: ")


@given(st.text(), st.recursive(st.none() | st.integers(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_any_override_works_or_is_a_config_error(setting: str, raw: Any) -> None:
    with contextlib.suppress(ConfigError):
        override(raw, setting)


def test_errors_name_file_key_value_and_what_is_allowed() -> None:
    assert told({}) == "file.yaml: name: is missing"
    assert told({"name": "x", "nam": 1}) == "file.yaml: nam: no such key; did you mean 'name'?"
    assert told({"name": "x", "zzz": 1}) == "file.yaml: zzz: no such key; allowed: inner, name, parts"
    assert told({"name": "x", "parts": [{"dept": 1}]}) == "file.yaml: parts.0.dept: no such key; did you mean 'depth'?"
    assert "did you mean 'depth'" in told({"name": "x", "inner": {"depht": 1}})
    assert told({"name": "x", "inner": {"depth": "deep"}}).endswith("(found 'deep')")
    assert "parts: Input should be a valid list (found a mapping)" in told({"name": "x", "parts": {}})
    assert len(told({"name": 1, "parts": 2}).splitlines()) == 2
