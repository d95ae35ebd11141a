"""A pipeline file: the YAML that `capfilt run` takes. Every key is described next to it; most are optional.

A model is a shipped name (tiny/filter), a folder of weights, or a hub id with a pinned revision. The keys of a source
are in `capfilt.config.source`; `capfilt.config.load` reads and overrides a file.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from capfilt.config.decoding import Decoding
from capfilt.config.dedup import DedupSettings
from capfilt.config.emit import EmitFormat, EmitParquet
from capfilt.config.rounds import Evaluate, Finetune, Pretrain
from capfilt.config.source import Source, source_name
from capfilt.config.yaml_file import ConfigModel


class IngestSettings(ConfigModel):
    """Rules of ingest. Refused rows stay in `pairs` with `status: rejected` or `quarantined` and the reason."""

    rows_per_shard: int = Field(default=10_000, ge=1)
    """Most rows per pairs shard."""
    min_side: int = Field(default=16, ge=1)
    """Shortest side in pixels; a shorter one is rejected as `image_too_small`."""
    max_aspect: float = Field(default=20.0, ge=1)
    """Largest longer side / shorter side; more is rejected as `aspect`."""
    max_pixels: int = Field(default=89_478_485, ge=1, le=178_956_970)
    """Largest width * height, read from the header before decoding; more is quarantined as `bomb`."""
    max_bytes: int = Field(default=64 * 2**20, ge=1)
    """Largest image file; a larger one is quarantined as `too_many_bytes`."""
    min_chars: int = Field(default=1, ge=0)
    """Fewest characters of the stripped text; fewer are rejected as `text_empty` or `text_too_short`. 0 accepts images
    without a text."""
    max_chars: int = Field(default=10_000, ge=1)
    """Most characters; more are rejected as `text_too_long`."""
    block_hashes: str | None = None
    """File with one sha256 or md5 of an image file per line. Such images are not downloaded or kept: `blocked`."""


class ModelSettings(ConfigModel):
    """A model's weights and how to run them."""

    model: str
    """A shipped name, a folder of weights, an official .pth file, or a hub id."""
    revision: str | None = None
    """Commit of a hub id, 40 hex digits."""
    tokenizer: str | None = None
    """Tokenizer for weights that have none (an official .pth file)."""
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Images per forward pass. auto: chosen by a timing probe (GPU) or from free memory (CPU). In the fingerprint,
    because on a GPU the last bits of a result depend on it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one, else the CPU."""
    precision: Literal["fp32", "bf16", "int8"] = "fp32"
    """fp32: the reference. int8: CPU, twice as fast at BLIP-base's size. bf16: GPU, or a CPU with bf16 instructions."""


class CaptionSettings(ModelSettings):
    """Synthetic captions for every web image."""

    decoding: Decoding = Decoding()
    samples: int = Field(default=1, ge=1)
    """Captions per image; more than 1 only with `nucleus`, because the other methods would repeat the text."""
    seed: int = 0
    """nucleus: with uid and sample number, decides the random numbers of a caption."""

    @model_validator(mode="after")
    def _check(self) -> "CaptionSettings":
        if self.samples > 1 and self.decoding.method != "nucleus":
            raise ValueError(f"samples: {self.samples} captions by {self.decoding.method} would be equal; take nucleus")
        if self.decoding.seed:
            raise ValueError("decoding.seed: give caption.seed instead")
        return self


class Thresholds(ConfigModel):
    """Least scores of a text; null takes the one of `select`."""

    itm_threshold: float | None = Field(default=None, ge=0, le=1)
    itc_threshold: float | None = Field(default=None, ge=-1, le=1)


PolicyName = Literal["itm_threshold", "calibrated", "itc_threshold", "both", "either", "top_k", "keep_all"]
"""One file each in `capfilt.selection.policies`."""


class SelectSettings(ConfigModel):
    """What is kept, decided from stored scores."""

    policy: PolicyName = "itm_threshold"
    """itm_threshold: the paper's filter. calibrated: the same, with the lowest threshold at which an estimated share
    `target_precision` of the kept texts matches, measured on human rows. itc_threshold: ITC instead of ITM. both,
    either: thresholds on ITM and ITC. top_k: the best `top_k` texts per image by `rank_by`, without a threshold.
    keep_all: every text that is no duplicate and was not refused."""
    itm_threshold: float = Field(default=0.5, ge=0, le=1)
    """Least P(match). Left out: what the judge's card suggests, else this."""
    itc_threshold: float = Field(default=0.25, ge=-1, le=1)
    """Least cosine. Left out: what the judge's card suggests, else this."""
    target_precision: float = Field(default=0.9, gt=0, lt=1)
    """calibrated: share of the kept texts that match."""
    noise_prior: float = Field(default=0.5, gt=0, lt=1)
    """calibrated: share of the judged texts that is assumed not to match; 0.5 is as many mismatched as matched."""
    per_origin: dict[Literal["web", "synthetic"], Thresholds] = Field(default={})
    """Thresholds of web or synthetic texts that replace the ones above. Older files call it `per_source`."""
    top_k: int = Field(default=1, ge=1)
    """top_k: number of texts per image that are kept."""
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


class Resources(ConfigModel):
    """Resources of one actor of a stage, and the number of actors."""

    num_cpus: float = Field(default=1, ge=0)
    """An actor that captions or scores on a CPU uses all of them. Two actors of one core are as fast, and one can fail
    without the other."""
    num_gpus: float = Field(default=0, ge=0)
    """GPUs of one actor; a fraction lets actors share a GPU."""
    min_actors: int = Field(default=1, ge=1)
    """Actors that are started even if the cluster has no room yet, so that an autoscaler adds nodes."""
    max_actors: int | None = Field(default=None, ge=1)
    """By default as many as the cluster's CPUs and GPUs allow."""


class Truth(ConfigModel):
    """A labelled sample: after the run, the funnel shows the filter's quality on it. No stage reads it."""

    path: str
    """Parquet with the columns `key` (string) and `matches` (bool: the web text describes its image)."""
    source: str = ""
    """Name of the source with these keys; the first web source by default."""


class Pipeline(ConfigModel):
    """A whole pipeline file."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][\w.-]*$")
    """Name of the run's folder (runs/NAME) and of its data set."""
    base: str | None = None
    """A run to continue in its folder: its pipeline, with this file's keys in place of its own."""
    sources: list[Source] = Field(min_length=1)
    ingest: IngestSettings = IngestSettings()
    caption: CaptionSettings | None = None
    """Without it there are no synthetic captions."""
    score: ModelSettings | None = None
    """Without it nothing is scored; `select.policy` must then be keep_all."""
    dedup: DedupSettings = DedupSettings()
    select: SelectSettings = SelectSettings()
    emit: list[EmitFormat] = Field(default=[EmitParquet(format="parquet")])
    """Formats of the data set, each at most once."""
    resources: dict[str, Resources] = Field(default={})
    """Per stage, by the stage's name."""
    truth: Truth | None = None
    rounds: int = Field(default=1, ge=1)
    """Rounds of CapFilt. Each captions and scores the same pairs with the models trained in the previous round."""
    round: int = Field(default=0, ge=0)
    """Number of this run's round; set by the loop."""
    pretrain: Pretrain | None = None
    finetune_captioner: Finetune | None = None
    finetune_filter: Finetune | None = None
    evaluate: Evaluate | None = None

    @property
    def trains(self) -> bool:
        """True if models are trained after `emit`, in rounds."""
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
            raise ValueError("rounds need `caption` and `score`, whose models the trained ones replace")
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
                raise ValueError(f"sources: two are named {name!r}; give them different `name`s (uids depend on it)")
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
        """Return the source of that name."""
        return next(source for source in self.sources if source_name(source) == name)
