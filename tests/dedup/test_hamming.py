"""Hamming searches against brute force, small and large."""

from collections.abc import Iterable
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from capfilt.dedup import hamming
from capfilt.dedup.links import Links
from capfilt.media.images import decode_image, phash

BASE = (0x0123456789ABCDEF, 0xF0F0F0F00F0F0F0F, 0x9247FA78544DD343)
CODES = st.lists(
    st.tuples(st.sampled_from([*BASE, 0, 1 << 63, 0xAA << 56]), st.sets(st.integers(0, 63), max_size=6)), max_size=14
)


def codes_of(drawn: list[tuple[int, set[int]]]) -> hamming.Codes:
    """Base hashes with some bits turned."""
    return np.array([base ^ sum(1 << bit for bit in bits) for base, bits in drawn], dtype=np.uint64)


def found(pieces: Iterable[Links]) -> dict[tuple[int, int], float]:
    """(i, j) -> similarity; no pair comes twice."""
    rows = [row for piece in pieces for row in zip(*(column.tolist() for column in piece), strict=True)]
    assert len({row[:2] for row in rows}) == len(rows)
    return {(i, j): similarity for i, j, similarity in rows}


def distance(a: int, b: int) -> int:
    return (int(a) ^ int(b)).bit_count()


def expected(codes: hamming.Codes, limit: int) -> dict[tuple[int, int], float]:
    """By brute force: equal ones to their first, first ones to each other."""
    values = codes.tolist()
    first = [values.index(value) for value in values]
    pairs = {}
    for j, b in enumerate(values):
        for i, a in enumerate(values[:j]):
            wanted = first[j] == i if a == b else first[i] == i and first[j] == j
            if wanted and distance(a, b) <= limit and min(a.bit_count(), b.bit_count()) >= 16:
                pairs[i, j] = 1 - distance(a, b) / 64
    return pairs


@pytest.mark.parametrize("all_pairs", [50_000, 0], ids=["flat", "bands"])
@given(CODES, st.sampled_from([0, 1, 3, 4, 7, 8, 12]))
@settings(max_examples=150, deadline=None)
def test_links_are_those_of_brute_force(all_pairs: int, drawn: list[tuple[int, set[int]]], limit: int) -> None:
    codes = codes_of(drawn)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hamming, "ALL_PAIRS", all_pairs)
        assert found(hamming.links(codes, limit)) == expected(codes, limit)


@given(CODES, CODES, st.sampled_from([0, 1, 4, 12]))
@settings(max_examples=60, deadline=None)
def test_matches_are_those_of_brute_force(
    left: list[tuple[int, set[int]]], right: list[tuple[int, set[int]]], limit: int
) -> None:
    a, b = codes_of(left), codes_of(right)
    structured = [(i, j) for i, x in enumerate(a.tolist()) for j, y in enumerate(b.tolist())
                  if min(x.bit_count(), y.bit_count()) >= 16 and distance(x, y) <= limit]  # fmt: skip
    assert found(hamming.matches(a, b, limit)) == {(i, j): 1 - distance(a[i], b[j]) / 64 for i, j in structured}


def test_sixty_thousand_by_bands_and_flat_give_the_same() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2**64, 60_000, dtype=np.uint64)
    for k in range(3_000):
        codes[k] = codes[k + 3_000] ^ np.uint64(sum(1 << int(bit) for bit in rng.choice(64, k % 7, replace=False)))
    banded = found(hamming.links(codes, 4))
    assert {(k, k + 3_000) for k in range(3_000) if k % 7 <= 4} == set(banded)
    flat = found(hamming.matches(codes[:4_000], codes, 4))
    assert {pair: s for pair, s in flat.items() if pair[0] < pair[1]} == {
        pair: s for pair, s in banded.items() if pair[0] < 4_000
    }


def test_plain_and_striped_pictures_have_no_structure() -> None:
    plain = [Image.new("RGB", (60, 40), colour) for colour in ("black", "white", (10, 200, 30))]
    stripes = [Image.linear_gradient("L").convert("RGB"), Image.linear_gradient("L").rotate(90).convert("RGB")]
    codes = np.array([phash(picture) for picture in plain + stripes], dtype=np.uint64)
    assert not hamming.structured(codes).any()
    assert found(hamming.links(codes, 32)) == {}


def test_pictures_have_structure_and_survive_recompression() -> None:
    rng = np.random.default_rng(1)
    codes = []
    for _ in range(4):
        picture = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(
            (96, 96), Image.Resampling.BICUBIC
        )
        buffer = BytesIO()
        picture.resize((80, 80)).save(buffer, "JPEG", quality=80)
        codes += [phash(picture), phash(decode_image(buffer.getvalue()))]
    assert hamming.structured(np.array(codes, dtype=np.uint64)).all()
    assert set(found(hamming.links(np.array(codes, dtype=np.uint64), 4))) == {(0, 1), (2, 3), (4, 5), (6, 7)}
