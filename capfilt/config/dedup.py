"""The `dedup` section of a pipeline file: which rows are marked as duplicates."""

from pydantic import Field

from capfilt.config.yaml_file import ConfigModel


class Perceptual(ConfigModel):
    """Near-duplicates by a 64-bit perceptual hash."""

    max_distance: int = Field(default=4, ge=0, le=32)
    """Largest Hamming distance in bits."""


class Semantic(ConfigModel):
    """Near-duplicates by the judge's image embedding."""

    min_similarity: float = Field(default=0.97, gt=0, le=1)
    """Least cosine."""


class EvalSet(ConfigModel):
    """An evaluation set whose images must not be trained on."""

    path: str
    """Parquet file with an image column."""
    name: str = ""
    """The file's name without suffix by default."""
    max_distance: int | None = Field(default=4, ge=0, le=32)
    """Largest distance of perceptual hashes in bits; null switches this comparison off."""
    min_similarity: float | None = Field(default=0.97, gt=0, le=1)
    """Least cosine of embeddings; null switches this comparison off."""


class DedupSettings(ConfigModel):
    """Duplicates are marked, never removed; `select` rejects the marked rows. Human rows are never marked."""

    exact: bool = True
    """Mark rows with equal decoded pixels."""
    perceptual: Perceptual | None = Perceptual()
    semantic: Semantic | None = Semantic()
    url_text: bool = True
    """Mark rows with equal url and equal text."""
    decontaminate: list[EvalSet] = Field(default=[])
    skip_models: bool = True
    """Rows marked before the models run are neither captioned nor scored."""
