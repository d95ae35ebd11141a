from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from capfilt.errors import CheckpointError
from capfilt.models.blip.adapter import Blip
from capfilt.models.blip.image import ImageProcessor
from capfilt.models.blip.med import MED
from capfilt.models.blip.tokenizer import TextTokenizer
from capfilt.training.weight_average import average, main

Med = Callable[..., tuple[MED, TextTokenizer]]


def test_a_filter_and_the_larger_model_that_it_left_from(
    tiny_med: Med, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, tuned = (Blip(*tiny_med(decoder=d), ImageProcessor(32)) for d in (True, False))
    with torch.no_grad():
        for parameter in tuned.med.parameters():
            parameter += 1
    before = {name: tensor.clone() for name, tensor in tuned.med.state_dict().items()}
    tuned.save(tmp_path / "tuned")
    start.save(tmp_path / "start")
    average(tuned, start, 0.25)
    for name, tensor in tuned.med.state_dict().items():
        assert torch.allclose(tensor, 0.25 * before[name] + 0.75 * start.med.state_dict()[name], atol=1e-6)
    line = [
        "average",
        str(tmp_path / "tuned"),
        str(tmp_path / "start"),
        "--weight",
        "0.25",
        "--out",
        str(tmp_path / "out"),
    ]
    monkeypatch.setattr("sys.argv", line)
    main()
    saved = Blip.load(tmp_path / "out").med.state_dict()
    assert all(torch.allclose(saved[name], tensor, atol=1e-6) for name, tensor in tuned.med.state_dict().items())


def test_models_of_other_parts_are_refused(tiny_med: Med) -> None:
    start, tuned = (Blip(*tiny_med(encoder=e), ImageProcessor(32)) for e in (False, True))
    with pytest.raises(CheckpointError, match="missing in the one that it started from"):
        average(tuned, start)
