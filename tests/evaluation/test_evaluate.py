import json
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from capfilt.errors import ConfigError, InputError
from capfilt.evaluation import evaluate_captioner, evaluate_judge, load_pairs, render
from capfilt.evaluation.encode import ImageStates

RECALLS = [f"{way}_r{k}{suffix}" for way in ("t2i", "i2t") for k in (1, 5, 10) for suffix in ("", "_itm")]
INTERVALS = [*RECALLS, "itc_auc", "itm_auc", "kept_matched", "kept_mismatched"]
JUDGE_KEYS = {
    "n",
    "n_texts",
    "itc_ap",
    "itm_ap",
    "ece",
    "reliability",
    *INTERVALS,
    *(f"{key}_ci" for key in INTERVALS),
}
CAPTIONER_KEYS = {f"{metric}{who}" for metric in ("cider", "bleu4") for who in ("", "_constant", "_nearest")}
CAPTIONER_KEYS |= {"n", "distinct1", "distinct2", "mean_length", "cider_ci", "examples"}


def shown(result):
    console = Console(file=StringIO(), width=140)
    console.print(render(result))
    return console.file.getvalue()


def test_a_good_judge(colours, fake):
    model = fake("judge", "embedder")
    steps = []
    result = evaluate_judge(
        model, load_pairs(colours), rerank_k=3, batch_size=4, progress=lambda *step: steps.append(step)
    )
    assert set(result) >= JUDGE_KEYS
    assert {result[key] for key in ("t2i_r1", "i2t_r1", "t2i_r1_itm", "itc_auc", "itm_auc", "itm_ap")} == {1.0}
    assert result["kept_matched"] == 1
    assert result["kept_mismatched"] < 0.5
    assert sum(row["count"] for row in result["reliability"]) == 20
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert model.encoded == 10  # the vision tower runs once an image
    assert model.judged == result["rerank_pairs"] + 20 < 100 + 20
    assert {step[0] for step in steps} == {"images", "texts", "re-ranking", "matching"}
    assert all(0 < done <= total for _, done, total in steps)
    assert "R@1" in shown(result)


def test_a_judge_on_wrong_texts(colours, fake):
    result = evaluate_judge(fake(), load_pairs(colours, "other"))
    assert result["t2i_r1"] == result["i2t_r1"] == 0
    assert result["itc_auc"] < 0.7


def test_several_texts_an_image_and_rows_left_out(write, png, fake):
    images = [png("red"), png("blue"), b"broken", png("green")]
    texts = [["a red thing", "red [b]"], ["blue", ""], ["x"], ["green"]]
    result = evaluate_judge(fake(), load_pairs(write(image=images, text=texts)))
    assert (result["n"], result["n_texts"], result["skipped_images"], result["skipped_texts"]) == (3, 4, 1, 1)
    assert result["i2t_r1"] == 1
    assert "row 2" in shown(result)


def test_the_same_whatever_the_batch_size_and_twice(colours, fake):
    pairs = load_pairs(colours, "other")
    first = evaluate_judge(fake(), pairs, batch_size=3, seed=4)
    assert first == evaluate_judge(fake(), pairs, batch_size=64, seed=4)


def test_one_image_cannot_be_mismatched(write, png, fake):
    with pytest.raises(InputError, match="1 of 1 texts"):
        evaluate_judge(fake(), load_pairs(write(image=[png("red")], text=["red"])))


def test_a_captioner_beside_its_baselines(colours, write, png, fake):
    names = ("red", "green", "blue", "red")
    train = write("train.parquet", image=[png(name, 9) for name in names], text=[f"something [{n}]" for n in names])
    for model in (fake("captioner"), fake()):
        model.decoding = model.measured()
        result = evaluate_captioner(model, load_pairs(colours), load_pairs(train), batch_size=4)
        assert set(result) >= CAPTIONER_KEYS
        assert result["cider"] > max(result["cider_constant"], result["cider_nearest"])
        assert result["cider_ci"][0] <= result["cider"] <= result["cider_ci"][1]
        assert result["examples"][0]["caption"] == "a red picture"
        assert [example["nearest"] for example in result["examples"][:3]] == [
            "something [red]",
            "something [green]",
            "something [blue]",
        ]
        assert result["constant"] == "something [red]"
        assert json.loads(json.dumps(result, allow_nan=False)) == result
        assert "something [red]" in shown(result)


def test_a_model_without_the_role_is_refused(colours, fake):
    pairs = load_pairs(colours)
    with pytest.raises(ConfigError, match="has the roles captioner, embedder, not judge"):
        evaluate_judge(fake("captioner", "embedder"), pairs)
    with pytest.raises(ConfigError, match="has the roles embedder, judge, not captioner"):
        evaluate_captioner(fake("judge", "embedder"), pairs, pairs)


def test_states_beyond_the_budget_are_computed_again_once_a_pass(colours, fake):
    pairs, model = load_pairs(colours), fake()
    kept, tight = ImageStates(model, pairs, 3), ImageStates(model, pairs, 3, budget=0)
    assert len(kept) == 4
    for states, passes in ((kept, 1), (tight, 2)):
        model.encoded = 0
        whole = [block.numpy() for block in states]
        [*parts] = states.split(np.arange(10))
        assert [place for _, place in parts] == [slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 10)]
        assert np.array_equal(np.concatenate(whole), np.concatenate([part.numpy() for part, _ in parts]))
        assert model.encoded == 10 * passes


def test_a_judge_that_cannot_retrieve_is_refused_by_name(fake, colours):
    class Bare:
        """A third party's judge with the methods that the score stage asks for, and no more."""

        def __init__(self, judge):
            self.card, self.clean, self.match = judge.card, judge.clean, judge.match

    pairs = load_pairs(colours, "text")
    with pytest.raises(ConfigError, match=r"system 'fake' cannot be measured: it has no method embed or embed_texts"):
        evaluate_judge(Bare(fake("judge", "embedder")), pairs)
