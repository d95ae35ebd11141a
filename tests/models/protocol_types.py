"""Checked by mypy, not run: the shipped systems have the signatures of the protocols, not only their names."""

from capfilt.models.blip.adapter import Blip
from capfilt.models.fake import FakeSystem
from capfilt.models.protocols import Captioner, EmbeddingJudge, EvaluatedCaptioner, RetrievalJudge, System


def blip(system: Blip) -> tuple[System, Captioner, EmbeddingJudge, RetrievalJudge, EvaluatedCaptioner]:
    """BLIP in every role."""
    return system, system, system, system, system


def fake(system: FakeSystem) -> tuple[System, Captioner, EmbeddingJudge, RetrievalJudge, EvaluatedCaptioner]:
    """The fake system in every role."""
    return system, system, system, system, system
