"""Measure a captioner or a judge: retrieval, matched against mismatched texts, captions against trivial baselines.

`pairs` reads the data, `evaluate` runs a model on them and returns a flat JSON-able dict of fractions, and `table`
formats it for the terminal. The metrics (`retrieval`, `matching`, `captions`, `bootstrap`) take plain arrays and lists
and use no model.
"""

from capfilt.evaluation.evaluate import evaluate_captioner, evaluate_judge
from capfilt.evaluation.pairs import Pairs, load_pairs
from capfilt.evaluation.table import render

__all__ = ["Pairs", "evaluate_captioner", "evaluate_judge", "load_pairs", "render"]
