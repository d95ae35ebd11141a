"""A pipeline file: the YAML that `capfilt run` takes. Every key's meaning stands beside it; most may be left out.

A model is a shipped name (tiny/filter), a folder of weights, or a hub id with a pinned revision. What a source may have
is in `capfilt.config.source`; how a file is read and overridden in `capfilt.config.load`.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from capfilt.config.decoding import Decoding
from capfilt.config.rounds import Evaluate, Finetune, Pretrain
from capfilt.config.source import Source, source_name
from capfilt.config.yaml_file import ConfigModel


class IngestSettings(ConfigModel):
    """Which rows are refused at the door. They stay in `pairs` with `status: rejected` and the reason."""

    rows_per_shard: int = Field(default=10_000, ge=1)
    """Most rows of a pairs shard."""
    min_side: int = Field(default=16, ge=1)
    """Pixels; a shorter side: `image_too_small`."""
    max_aspect: float = Field(default=20.0, ge=1)
    """Longer side / shorter side; beyond: `aspect`."""
    max_pixels: int = Field(default=89_478_485, ge=1, le=178_956_970)
    """Width * height from the header, before anything is decoded; more is quarantined as `bomb`."""
    max_bytes: int = Field(default=64 * 2**20, ge=1)
    """An image file's size; more is quarantined as `too_many_bytes`."""
    min_chars: int = Field(default=1, ge=0)
    """Of the text, ends stripped; fewer: `text_empty` or `text_too_short`. 0 lets images without a text pass."""
    max_chars: int = Field(default=10_000, ge=1)
    """More: `text_too_long`."""
    block_hashes: str | None = None
    """File with one sha256 or md5 of an image file a line: `blocked`; not asked for, and its bytes are not kept."""


class ModelSettings(ConfigModel):
    """Weights, and how they are run."""

    model: str
    revision: str | None = None
    """Commit of a hub id, 40 hex digits."""
    tokenizer: str | None = None
    """For weights that come without (an official .pth file)."""
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Images in a forward pass. auto: what pays and fits (`stages.batching`). Part of the fingerprint, for off the CPU
    sums differ in their last bits with it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16", "int8"] = "fp32"
    """fp32: the reference. int8: CPU, twice as fast at BLIP-base's size. bf16: GPU, or a CPU that multiplies it."""


class CaptionSettings(ModelSettings):
    """Synthetic captions for every web image."""

    decoding: Decoding = Decoding()
    samples: int = Field(default=1, ge=1)
    """Captions an image; with `greedy` and `beam` more than 1 would be the same text."""
    seed: int = 0

    @model_validator(mode="after")
    def _check(self) -> "CaptionSettings":
        if self.samples > 1 and self.decoding.method != "nucleus":
            raise ValueError(f"samples: {self.samples} captions by {self.decoding.method} would be equal; take nucleus")
        if self.decoding.seed:
            raise ValueError("decoding.seed: give caption.seed instead")
        return self


class Perceptual(ConfigModel):
    """Near-duplicates by a 64-bit perceptual hash."""

    max_distance: int = Field(default=4, ge=0, le=32)
    """Hamming distance in bits."""


class Semantic(ConfigModel):
    """Near-duplicates by the matcher's image embedding."""

    min_similarity: float = Field(default=0.97, gt=0, le=1)
    """Cosine."""


class EvalSet(ConfigModel):
    """An evaluation set whose images must not be trained on."""

    path: str
    """Parquet with an image column."""
    name: str = ""
    """By default the file's name without suffix."""
    max_distance: int | None = Field(default=4, ge=0, le=32)
    """Perceptual hash, bits; null leaves it out."""
    min_similarity: float | None = Field(default=0.97, gt=0, le=1)
    """Embedding's cosine; null leaves it out."""


class DedupSettings(ConfigModel):
    """Duplicates are marked, never removed; `select` rejects the marked rows. Human rows are never marked."""

    exact: bool = True
    """Equal decoded pixels."""
    perceptual: Perceptual | None = Perceptual()
    semantic: Semantic | None = Semantic()
    url_text: bool = True
    """Equal url and equal text."""
    decontaminate: list[EvalSet] = Field(default=[])
    skip_models: bool = True
    """Rows marked before the models run are neither captioned nor scored."""


class Thresholds(ConfigModel):
    """Least scores of a text; null takes the one of `select`."""

    itm_threshold: float | None = Field(default=None, ge=0, le=1)
    itc_threshold: float | None = Field(default=None, ge=-1, le=1)


PolicyName = Literal["itm_threshold", "calibrated", "itc_threshold", "both", "either", "top_k", "keep_all"]
"""One file each in `capfilt.selection.policies`."""


class SelectSettings(ConfigModel):
    """What is kept, decided from stored scores."""

    policy: PolicyName = "itm_threshold"
    """itm_threshold: the paper's filter. calibrated: the same, at the least threshold at which the kept human rows
    match with `target_precision`. itc_threshold: ITC instead of ITM. both, either: thresholds on ITM and ITC. top_k:
    the best `top_k` texts per image by `rank_by`, without a threshold. keep_all: every text that is no duplicate and
    was not refused."""
    itm_threshold: float = Field(default=0.5, ge=0, le=1)
    """Least P(match)."""
    itc_threshold: float = Field(default=0.25, ge=-1, le=1)
    """Least cosine."""
    target_precision: float = Field(default=0.9, gt=0, lt=1)
    """calibrated: share of the kept texts that match."""
    noise_prior: float = Field(default=0.5, gt=0, lt=1)
    """calibrated: share of the judged texts that is assumed not to match; 0.5 is as many mismatched as matched."""
    per_origin: dict[Literal["web", "synthetic"], Thresholds] = Field(default={})
    """Thresholds of web or synthetic texts that replace the ones above. Older files call it `per_source`."""
    top_k: int = Field(default=1, ge=1)
    rank_by: Literal["itm", "itc"] = "itm"
    """Score that orders the texts of an image for `top_k` and `max_texts_per_image`."""
    max_texts_per_image: int | None = Field(default=None, ge=1)
    """Applied after the policy."""

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, raw: Any) -> Any:
        """Read `per_source`, the former name of `per_origin`."""
        if not isinstance(raw, dict) or "per_source" not in raw:
            return raw
        if raw["per_source"] and raw.get("per_origin"):
            raise ValueError("per_source was renamed to per_origin; give per_origin alone")
        new = {key: value for key, value in raw.items() if key != "per_source"}
        return new | {"per_origin": raw.get("per_origin") or raw["per_source"]}


class EmitParquet(ConfigModel):
    """`data/train-*.parquet` in the layout of `datasets`: one row a kept pair."""

    format: Literal["parquet"]
    rows_per_file: int = Field(default=10_000, ge=1)


class EmitWebDataset(ConfigModel):
    """`webdataset/*.tar`: key.jpg (as it was), key.txt, key.json."""

    format: Literal["webdataset"]
    rows_per_file: int = Field(default=10_000, ge=1)


class EmitBlipJson(ConfigModel):
    """`blip_json/`: the web and the synthetic list apart, as BLIP's released ones."""

    format: Literal["blip_json"]
    link: Literal["image", "url"] = "image"
    """image: files are written beside the lists. url: {"url", "caption"}; rows without a url are left out, counted."""


class EmitPairs(ConfigModel):
    """`pairs/pairs.parquet`: uids and texts, no images."""

    format: Literal["pairs"]


EmitFormat = Annotated[EmitParquet | EmitWebDataset | EmitBlipJson | EmitPairs, Field(discriminator="format")]


class Resources(ConfigModel):
    """What one actor of a stage takes, and how many there may be."""

    num_cpus: float = Field(default=1, ge=0)
    """An actor that captions or scores on a CPU uses all of them; two actors of one core are as fast and fail apart."""
    num_gpus: float = Field(default=0, ge=0)
    min_actors: int = Field(default=1, ge=1)
    max_actors: int | None = Field(default=None, ge=1)
    """By default as many as the cluster's CPUs or GPUs hold."""


class Truth(ConfigModel):
    """A labelled sample: after the run, the funnel says how the filter did on it. No stage reads it."""

    path: str
    """Parquet with the columns `key` (string) and `matches` (bool: the web text is this image's own)."""
    source: str = ""
    """Name of the source that the keys are of; the first web source by default."""


class Pipeline(ConfigModel):
    """The whole file."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][\w.-]*$")
    """Names the run's folder (runs/NAME) and its dataset."""
    base: str | None = None
    """A run to go on with: its pipeline with this file's keys in place of its own, in its folder."""
    sources: list[Source] = Field(min_length=1)
    ingest: IngestSettings = IngestSettings()
    caption: CaptionSettings | None = None
    """Left out: no synthetic captions."""
    score: ModelSettings | None = None
    """Left out: nothing is judged; `select.policy` must then be keep_all."""
    dedup: DedupSettings = DedupSettings()
    select: SelectSettings = SelectSettings()
    emit: list[EmitFormat] = Field(default=[EmitParquet(format="parquet")])
    resources: dict[str, Resources] = Field(default={})
    """Per stage, by the stage's name."""
    truth: Truth | None = None
    rounds: int = Field(default=1, ge=1)
    """Of CapFilt: each captions and judges the same pairs with the models that the one before it trained."""
    round: int = Field(default=0, ge=0)
    """Which of them this run is; a loop sets it."""
    pretrain: Pretrain | None = None
    finetune_captioner: Finetune | None = None
    finetune_filter: Finetune | None = None
    evaluate: Evaluate | None = None

    @property
    def trains(self) -> bool:
        """Whether models are trained after `emit`, in rounds."""
        return self.pretrain is not None

    @property
    def _has_human(self) -> bool:
        return any(source.role == "human" for source in self.sources)

    @model_validator(mode="after")
    def _check_training(self) -> "Pipeline":
        parts = {name: getattr(self, name) for name in ("pretrain", "finetune_captioner", "finetune_filter")}
        missing = [name for name, part in parts.items() if part is None]
        wanted = self.rounds > 1 or len(missing) < 3 or self.evaluate is not None
        if wanted and missing:
            raise ValueError(f"rounds train with pretrain, finetune_captioner and finetune_filter; add {missing[0]}")
        if wanted and (self.caption is None or self.score is None):
            raise ValueError("rounds need `caption` and `score`: whose places the trained models take")
        if wanted and self.base is not None:
            raise ValueError("base: a loop of rounds begins with its own pairs; leave out `base`")
        if wanted and not self._has_human:
            raise ValueError("sources: captioner and filter are fine-tuned on human pairs; add one with role: human")
        return self

    @model_validator(mode="after")
    def _check(self) -> "Pipeline":
        names = [source_name(source) for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"sources: two are named {name!r}; give them different `name`s (uids are made of it)")
        formats = [part.format for part in self.emit]
        if len(set(formats)) < len(formats):
            raise ValueError(f"emit: {', '.join(formats)}: each format once")
        if self.select.policy == "calibrated" and not self._has_human:
            raise ValueError(
                "select.policy: calibrated takes its threshold from human pairs; add a source of that role"
            )
        if self.score is None:
            self._check_unscored()
        return self

    def _check_unscored(self) -> None:
        if self.select.policy != "keep_all":
            raise ValueError(f"select.policy: {self.select.policy} needs scores; add `score`, or take keep_all")
        if self.dedup.semantic is not None:
            raise ValueError("dedup.semantic: needs score's embedding; add `score`, or set it to null")
        if any(part.min_similarity is not None for part in self.dedup.decontaminate):
            raise ValueError("dedup.decontaminate: min_similarity needs `score`; add it, or set it to null")

    def source(self, name: str) -> Source:
        """The source of that name."""
        return next(source for source in self.sources if source_name(source) == name)
