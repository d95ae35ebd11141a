from typing import Any

import pytest

from capfilt.training.recipe_sections import OptimSection
from capfilt.training.schedule import learning_rate


def optim(**changes: Any) -> OptimSection:
    paper = {"lr": 3e-4, "min_lr": 1e-6, "warmup_steps": 3000, "schedule": "step", "epochs": 20, "global_batch": 2880}
    return OptimSection.model_validate(paper | changes)


def test_the_papers_pre_training() -> None:
    rates = {step: learning_rate(optim(), step, 5000) for step in (0, 1, 1500, 2999, 3000, 4999, 5000, 50_000, 99_999)}
    assert rates == {
        0: 1e-6,
        1: pytest.approx(1e-6 + 2.99e-4 / 3000),
        1500: pytest.approx(1.505e-4),
        2999: pytest.approx(3e-4 - 2.99e-4 / 3000),
        3000: 3e-4,
        4999: 3e-4,
        5000: pytest.approx(2.7e-4),
        50_000: pytest.approx(3e-4 * 0.9**10),
        99_999: pytest.approx(3e-4 * 0.9**19),
    }
    assert learning_rate(optim(epochs=100), 5000 * 99, 5000) == 1e-6


def test_cosine_ends() -> None:
    fine = optim(lr=1e-5, min_lr=1e-7, warmup_steps=0, schedule="cosine", epochs=6)
    assert learning_rate(fine, 0, 100) == 1e-5
    assert learning_rate(fine, 300, 100) == pytest.approx((1e-5 + 1e-7) / 2)
    assert learning_rate(fine, 600, 100) == pytest.approx(1e-7)
    warm = optim(lr=1e-3, min_lr=0, warmup_steps=100, schedule="cosine", epochs=3)
    rates = [learning_rate(warm, step, 100) for step in range(300)]
    assert rates[100] == max(rates) == 1e-3
    assert rates[:101] == sorted(rates[:101])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[200] == pytest.approx(5e-4)


def test_a_warm_up_longer_than_the_run_never_ends() -> None:
    assert learning_rate(optim(schedule="cosine", epochs=1), 9, 10) == pytest.approx(1e-6 + 2.99e-4 * 9 / 3000)
