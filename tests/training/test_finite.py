import math

import pytest
import torch

from capfilt.errors import TrainingError
from capfilt.training.finite import check_gradient, check_losses


def test_losses_and_gradients_must_be_finite() -> None:
    check_losses({"itc": 1.0}, {"itc": torch.tensor(1.0)}, ["a"], 1)
    check_gradient(1.0, ["a"])
    with pytest.raises(TrainingError, match=r"the loss itm is not finite; rows of this batch: a, b\. Lower optim.lr"):
        check_losses({"itc": 1.0, "itm": math.inf}, {"itm": torch.tensor(math.inf)}, ["a", "b"], 1)
    with pytest.raises(TrainingError, match="the gradient is not finite; rows of this step: a"):
        check_gradient(math.nan, ["a"])
