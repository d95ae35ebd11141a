"""How good a captioner or filter is: retrieval, matched against mismatched texts, captions beside trivial baselines.

`pairs` reads the data, `evaluate` runs a model over them and returns a flat JSON-able dict of fractions, `table` prints
one. The metrics (`retrieval`, `matching`, `captions`, `bootstrap`) take plain arrays and lists and know no model.
"""

from capfilt.evaluation.evaluate import evaluate_captioner, evaluate_judge
from capfilt.evaluation.pairs import Pairs, load_pairs
from capfilt.evaluation.table import render

__all__ = ["Pairs", "evaluate_captioner", "evaluate_judge", "load_pairs", "render"]
