"""The stages of the pipeline, in the order in which a row passes them. To add a stage, add its class here."""

from capfilt.stages.base import FusedStage, Stage
from capfilt.stages.calibrate import CalibrateStage
from capfilt.stages.caption import CaptionStage
from capfilt.stages.caption_score import CaptionScoreStage
from capfilt.stages.dedup import DedupStage
from capfilt.stages.emit import EmitStage
from capfilt.stages.ingest import IngestStage
from capfilt.stages.near import NearStage
from capfilt.stages.score import ScoreStage
from capfilt.stages.select import SelectStage
from capfilt.store.layout import RunLayout
from capfilt.store.schema import ShardTable

STAGES: list[type[Stage]] = [
    IngestStage,
    NearStage,
    CaptionStage,
    ScoreStage,
    DedupStage,
    CalibrateStage,
    SelectStage,
    EmitStage,
]
FUSED: list[type[FusedStage]] = [CaptionScoreStage]
"""Stages that may be done in one pass over the images."""


def tables(layout: RunLayout) -> list[ShardTable]:
    """Return the tables of shards that a run has, in the order of its stages."""
    found = (stage.spec.table for stage in STAGES)
    return [table for table in found if table is not None and layout.has(table)]
