import subprocess
import sys

import numpy as np
import pytest

from capfilt.errors import InputError
from capfilt.evaluation.baselines import CiderIndex, constant_caption, nearest_captions
from capfilt.evaluation.caption_tokens import tokenize, words
from capfilt.evaluation.captions import bleu4, cider, distinct, mean_length

REFERENCES = [
    ["a dog runs in the park", "the brown dog is running"],
    ["two women sit at a table with food"],
    ["a red bus drives down a city street"],
    ["a man rides a horse on the beach"],
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog's bone, isn't it?", "a dog 's bone is n't it"),
        ("The U.S. flag (left) – 1,000 people.", "the u.s. flag left 1,000 people"),
        ("“A well-known 3-year-old” can't & cannot", "a well-known 3-year-old ca n't & can not"),
        ("Dr. J. Smith at 10:30 o’clock...", "dr. j. smith at 10:30 o'clock"),
        ("Naïve café\tin Zürich\n", "naïve café in zürich"),
        ("... !?", ""),
        ("", ""),
    ],
)
def test_words_follow_penn_treebank_without_punctuation(text, expected):
    assert tokenize(text) == expected
    assert words(text) == expected.split()


def test_no_java_is_started():
    code = (
        "from capfilt.evaluation.captions import cider, bleu4; c = ['a dog runs'] * 2; r = [['a dog runs'], ['a cat']]"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print(bleu4(c, r), cider(c, r).mean)"],
        env={"PATH": "/nonexistent"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(done.stdout.split()) == 2


def test_a_perfect_captioner_has_cider_ten_and_bleu_one():
    single = [texts[:1] for texts in REFERENCES]
    captions = [texts[0].upper() + "." for texts in single]
    assert cider(captions, single).mean == pytest.approx(10.0)
    assert bleu4(captions, single) == pytest.approx(1.0, abs=1e-6)


def test_cider_has_a_score_for_each_image_under_one_idf():
    captions = ["a dog runs in the park", "nonsense words only", "a red bus", ""]
    scores = cider(captions, REFERENCES)
    assert scores.each.shape == (4,)
    assert scores.mean == pytest.approx(scores.each.mean())
    assert scores.each[0] > 3
    assert scores.each[1] == scores.each[3] == 0


def test_wrong_input_is_refused():
    with pytest.raises(InputError, match="2 captions, 1 images"):
        cider(["a", "b"], [["a"]])
    with pytest.raises(InputError, match="image 1 has no reference"):
        bleu4(["a", "b"], [["a"], []])
    with pytest.raises(InputError, match="no reference has a word"):
        cider(["a"], [["..."]])


def test_distinct_and_length():
    captions = ["A dog runs.", "a dog sits"]
    assert distinct(captions, 1) == pytest.approx(4 / 6)
    assert distinct(captions, 2) == pytest.approx(3 / 4)
    assert distinct(["a"], 2) == 0
    assert mean_length(captions) == 3


def test_the_index_scores_as_pycocoevalcap_does():
    texts = [text for texts in REFERENCES for text in texts]
    for caption in ("a dog runs in the park today", "a a a red bus", "unknown", ""):
        expected = cider([caption] * len(texts), [[text] for text in texts]).each
        assert CiderIndex(texts).scores(caption) == pytest.approx(expected)


def test_the_constant_is_the_training_text_most_like_the_others():
    texts = ["a group of people", "a group of people outside", "a large group of people", "zebra", "seven boats at sea"]
    assert constant_caption(texts) == "a group of people"
    assert constant_caption(texts, seed=5) == constant_caption(texts, seed=5)
    assert constant_caption(["only one"]) == "only one"
    assert constant_caption(texts, candidates=2, sample=3) in texts
    with pytest.raises(InputError):
        constant_caption([])


def test_a_candidate_does_not_score_against_itself():
    assert constant_caption(["odd unrelated words here", "two cats", "two cats play", "cats play"]) != (
        "odd unrelated words here"
    )


def test_nearest_is_by_cosine_and_takes_the_first_of_equals():
    train = np.array([[1, 0], [0, 5], [0, 1]], dtype=np.float32)
    images = np.array([[9, 1], [0.1, 0.2]], dtype=np.float32)
    assert nearest_captions(images, train, ["right", "up", "up too"]) == ["right", "up"]
    with pytest.raises(InputError, match="one text per training image"):
        nearest_captions(images, train, ["right"])
