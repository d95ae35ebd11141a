from collections.abc import Callable

Verdicts = Callable[..., list[str | None]]


def test_the_best_by_the_chosen_score_pass(verdicts: Verdicts) -> None:
    scores = ((0.1, 0.9), (0.4, 0.1), (0.2, 0.5))
    assert verdicts("top_k", *scores) == [None, "not_top_k", "not_top_k"]
    assert verdicts("top_k", *scores, rank_by="itc") == ["not_top_k", None, "not_top_k"]
    assert verdicts("top_k", *scores, top_k=2) == [None, "not_top_k", None]


def test_of_equal_scores_the_own_text_and_then_the_first_caption_pass(verdicts: Verdicts) -> None:
    assert verdicts("top_k", (None, 0.5), (None, 0.5), (None, 0.5), top_k=2) == [None, None, "not_top_k"]


def test_a_text_without_the_score_takes_no_place(verdicts: Verdicts) -> None:
    assert verdicts("top_k", (0.9, None), (0.1, 0.2)) == ["no_score", None]
