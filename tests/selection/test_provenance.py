import json
from pathlib import Path

from capfilt.config.decoding import Decoding
from capfilt.selection.provenance import decoding_json, model_name


def test_decoding_holds_what_matters_to_the_method() -> None:
    greedy = json.loads(decoding_json(Decoding(method="greedy", top_p=0.5, num_beams=9, prompt="a picture of "), 3, 0))
    assert greedy == {
        "method": "greedy", "min_length": 10, "max_length": 30, "repetition_penalty": 1.0, "prompt": "a picture of ",
        "seed": 3, "sample": 0,
    }  # fmt: skip
    beam = json.loads(decoding_json(Decoding(method="beam"), 0, 0))
    assert set(beam) - set(greedy) == {"num_beams", "length_penalty"}
    nucleus = json.loads(decoding_json(Decoding(), 0, 0))
    assert set(nucleus) - set(greedy) == {"top_p", "temperature"}


def test_a_path_of_weights_is_told_by_its_last_part(tmp_path: Path) -> None:
    assert model_name(str(tmp_path / "weights")) == "weights"
    assert model_name("Salesforce/blip") == "Salesforce/blip"
