import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capfilt.errors import InputError
from capfilt.evaluation.retrieval import ranks_i2t, ranks_t2i, recall_at, recalls, rerank, top_k

ONE_EACH = np.arange(3)


def test_ranks_by_hand():
    scores = np.array([[0.9, 0.8, 0.1], [0.2, 0.7, 0.3], [0.5, 0.1, 0.2]], dtype=np.float32)
    assert ranks_t2i(scores, ONE_EACH).tolist() == [1, 2, 2]
    assert ranks_i2t(scores, ONE_EACH).tolist() == [1, 1, 2]
    values = recalls(ranks_t2i(scores, ONE_EACH), ranks_i2t(scores, ONE_EACH))
    assert values["t2i_r1"] == pytest.approx(1 / 3)
    assert values["i2t_r1"] == pytest.approx(2 / 3)
    assert values["t2i_r5"] == values["i2t_r10"] == 1
    assert values["t2i_median_rank"] == 2
    assert values["i2t_median_rank"] == 1


def test_a_constant_matrix_finds_nothing():
    scores = np.zeros((20, 20), dtype=np.float32)
    values = recalls(ranks_t2i(scores, np.arange(20)), ranks_i2t(scores, np.arange(20)))
    assert {values[f"{way}_r{k}"] for way in ("t2i", "i2t") for k in (1, 5, 10)} == {0.0}


def test_any_text_of_an_image_is_a_hit_and_its_others_are_no_rivals():
    image_index = np.array([0, 0, 1])
    scores = np.array([[0.9, 0.1, 0.5], [0.9, 0.2, 0.3]], dtype=np.float32)
    assert ranks_i2t(scores, image_index).tolist() == [1, 2]
    assert ranks_t2i(scores, image_index).tolist() == [2, 2, 2]  # text 0 ties


def test_an_image_without_text_is_a_distractor():
    scores = np.array([[0.1, 0.2], [0.9, 0.8], [0.5, 0.9]], dtype=np.float32)
    assert ranks_t2i(scores, np.array([1, 2])).tolist() == [1, 1]
    assert ranks_i2t(scores, np.array([1, 2])).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("scores", "image_index"),
    [
        (np.zeros(3), np.arange(3)),
        (np.zeros((3, 2)), np.arange(3)),
        (np.zeros((2, 3)), np.arange(3)),
        (np.zeros((0, 0)), np.arange(0)),
        (np.array([[np.nan]]), np.arange(1)),
    ],
)
def test_wrong_input_is_refused(scores, image_index):
    for ranks in (ranks_t2i, ranks_i2t):
        with pytest.raises(InputError):
            ranks(scores, image_index)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 8), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_the_order_of_images_and_texts_does_not_matter(n_images, n_texts, seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 5, (n_images, n_texts)).astype(np.float32)  # many ties
    image_index = rng.integers(0, n_images, n_texts)
    images, texts = rng.permutation(n_images), rng.permutation(n_texts)
    moved, moved_index = scores[images][:, texts], np.argsort(images)[image_index[texts]]
    assert ranks_t2i(moved, moved_index).tolist() == ranks_t2i(scores, image_index)[texts].tolist()
    assert sorted(ranks_i2t(moved, moved_index)) == sorted(ranks_i2t(scores, image_index))


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 9), st.integers(1, 12), st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_rerank_judges_needed_pairs_once_in_order_of_image(n, k, batch_size, seed):
    itc = np.random.default_rng(seed).normal(size=(n, n)).astype(np.float32)
    seen: list[tuple[int, int]] = []
    progress: list[tuple[int, int]] = []

    def itm(images, texts):
        assert len(images) <= batch_size
        assert images.dtype == texts.dtype == np.int64
        seen.extend(zip(images.tolist(), texts.tolist(), strict=True))
        return np.zeros(len(images), dtype=np.float32)

    result = rerank(itc, itm, k, batch_size=batch_size, progress=lambda *at: progress.append(at))
    needed = top_k(itc, k, 0) | top_k(itc, k, 1)
    assert seen == list(zip(*(axis.tolist() for axis in np.nonzero(needed)), strict=True))
    assert result.pairs == len(seen) == progress[-1][0] == progress[-1][1]
    for again, axis in ((result.t2i, 0), (result.i2t, 1)):  # ITM says nothing: ITC's order stays
        assert (np.argsort(-again, axis=axis, kind="stable") == np.argsort(-itc, axis=axis, kind="stable")).all()


def test_rerank_adds_itm_to_itc_and_leaves_the_rest_below():
    itc = np.array([[0.9, 0.1], [0.8, 0.7], [0.1, 0.75]], dtype=np.float32)
    logit = np.array([[-5.0, 9.0], [-4.0, 1.0], [100.0, 1.2]], dtype=np.float32)
    result = rerank(itc, lambda images, texts: logit[images, texts], k=2)
    assert result.t2i[:, 0].argsort()[::-1].tolist() == [1, 0, 2]  # image 2 is no candidate, for all its logit
    assert result.t2i[2, 1] == pytest.approx(1.95)
    assert result.i2t[0, 1] == pytest.approx(9.1)
    assert ranks_t2i(result.t2i, np.array([1, 2])).tolist() == [1, 1]


def test_k_is_capped_and_all_is_then_judged():
    result = rerank(np.zeros((2, 3)), lambda images, texts: np.ones(len(images), dtype=np.float32), k=99)
    assert result.pairs == 6
    assert (result.t2i == 1).all()


def test_rerank_refuses_bad_logits_and_bad_k():
    with pytest.raises(InputError, match="2 finite logits"):
        rerank(np.zeros((1, 2)), lambda images, texts: np.array([np.nan, 1.0]), k=2)
    with pytest.raises(InputError, match="k = 0"):
        rerank(np.zeros((1, 2)), lambda images, texts: np.zeros(2), k=0)


def test_recall_at():
    assert recall_at(np.array([1, 2, 6, 11]), 5) == 0.5
