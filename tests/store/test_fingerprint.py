from hashlib import sha256

from hypothesis import given
from hypothesis import strategies as st

from capfilt.store.fingerprint import canonical, changes, fingerprint

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def test_order_of_keys_is_nothing_and_values_are_all() -> None:
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1}) != fingerprint({"a": 1, "b": [3]})
    assert len(fingerprint({})) == 12


def test_golden() -> None:
    written = '{"seed":0,"stage":"über"}'
    assert fingerprint({"stage": "über", "seed": 0}) == sha256(written.encode()).hexdigest()[:12]


@given(JSON, JSON)
def test_changes_say_something_exactly_where_fingerprints_differ(old: object, new: object) -> None:
    assert bool(changes(old, new)) == (canonical(old) != canonical(new))


def test_changes_name_key_and_values() -> None:
    old = {"settings": {"seed": 0, "top_p": 0.9}, "inputs": ["a"]}
    new = {"settings": {"seed": 1, "top_p": 0.9}, "inputs": ["a", "b"]}
    assert changes(old, new) == ['inputs: ["a"] -> ["a","b"]', "settings.seed: 0 -> 1"]
    assert changes({"text": "x" * 100}, {})[0].endswith("... -> (absent)")
