"""BLIP's pre-training objective (paper section 3.2): ITC + ITM + LM, any of them weighted out.

One vision pass serves the three losses. ITC follows ALBEF: momentum copies of the unimodal encoders give the keys and
the soft targets, a queue gives more negatives. ITM draws hard negatives by the contrastive similarities of the batch;
texts of one image are never each other's negatives (the official code forgets this; bootstrapped data has such pairs).
Similarities, softmaxes and losses are float32 whatever the autocast.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from capfilt.config.yaml_file import ConfigModel
from capfilt.errors import ConfigError
from capfilt.models.blip.layers import KV
from capfilt.models.blip.med import MED, select_kv
from capfilt.models.blip.tokenizer import TextTokenizer
from capfilt.models.protocols import TrainBatch
from capfilt.training.momentum import Momentum, features


class ObjectiveConfig(ConfigModel):
    """Which losses, and their constants; the defaults are the paper's."""

    itc: float = Field(default=1.0, ge=0)
    itm: float = Field(default=1.0, ge=0)
    lm: float = Field(default=1.0, ge=0)
    temperature: float = Field(default=0.07, gt=0)
    """tau at the first step; learnt, clamped to [0.001, 0.5]."""
    momentum: float = Field(default=0.995, ge=0, lt=1)
    queue_size: int = Field(default=57600, ge=0)
    """Keys a modality; a multiple of the global batch. 0: only the batch."""
    alpha: float = Field(default=0.4, ge=0, le=1)
    """Largest weight of the soft targets."""
    alpha_epochs: float = Field(default=2.0, ge=0)
    """Epochs over which alpha grows from 0 (the official fine-tuning of the filter takes 1)."""
    hard_floor: float = Field(default=1e-4, gt=0, le=1)
    """Added to each hard-negative weight. 1 / batch makes half of the draws uniform, which ITM from scratch needs."""
    itm_alpha: float = Field(default=0.0, ge=0, le=1)
    """Largest weight of ITM's soft targets, grown as alpha; not in the paper, see `match_probability`."""
    positives: bool = False
    """Every key with the row's image id is a target (fine-tuning of the filter), not only its own text."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    prompt: str = ""
    """Put before each text for LM and masked there: "a picture of " in the captioner's fine-tuning."""

    @field_validator("prompt")
    @classmethod
    def _ends_with_a_space(cls, prompt: str) -> str:
        if prompt and not prompt.endswith(" "):
            raise ValueError("end it with a space, or its last word and the text's first would be one word")
        return prompt


def hard_negatives(similarity: Tensor, ids: Tensor, floor: float = 1e-4) -> tuple[Tensor, Tensor]:
    """One draw a row from softmax(similarity) + floor over columns of another image id.

    Args:
        similarity: (B, B) already divided by tau. ids: (B,) image ids of rows and columns. floor: > 0, so that a
            confident model still draws easy ones.

    Returns:
        (B,) int64 column of each row, and (B,) bool: False where every column has the row's own id.
    """
    weights = similarity.float().softmax(-1).nan_to_num(0.0) + floor  # NaN: the loop's own check will say it better
    weights = weights.masked_fill(ids[:, None] == ids[None, :], 0.0)
    there = weights.sum(-1) > 0
    return torch.multinomial(weights + (~there)[:, None], 1).squeeze(-1), there


def match_probability(i2t: Tensor, t2i: Tensor) -> Tensor:
    """What ITC knows of a match, as a soft target for ITM: (B, B) in [0, 1], rows images, columns texts.

    InfoNCE's optimum is the log density ratio of a pair up to a constant of its row, the log mean exp over the keys
    (van den Oord et al. 2018); ITM's prior of 1 : 2 makes it a probability. From few pairs ITC learns to generalise
    sooner than ITM, which sees three pairs where ITC sees a whole queue of them.

    Args:
        i2t, t2i: (B, B + queue) similarities / tau, the batch's own keys first.
    """
    n = len(i2t)
    ratio = [s[:, :n] - s.logsumexp(-1, keepdim=True) + math.log(s.shape[1]) for s in (i2t, t2i)]
    return ((ratio[0] + ratio[1].T) / 2 - math.log(2)).sigmoid()


class BlipObjective(nn.Module):
    """MED and its losses; `forward` takes a batch and gives the named, weighted terms.

    `ramp` in [0, 1] scales alpha; the loop raises it over the first epochs.
    """

    def __init__(self, med: MED, tokenizer: TextTokenizer, config: ObjectiveConfig) -> None:
        super().__init__()
        self.contrastive = bool(config.itc or config.itm)
        if (self.contrastive and not med.config.encoder) or (config.lm and not med.config.decoder):
            raise ConfigError("objective: a loss is asked for whose half the initial checkpoint does not have")
        self.prompt_length = len(tokenizer.prompt(config.prompt)) if config.prompt else 1
        if config.lm and tokenizer.max_tokens <= self.prompt_length + 1:
            raise ConfigError(
                f"data.max_tokens: {tokenizer.max_tokens} leaves no token after [DEC] and the prompt "
                f"{config.prompt!r}, which take {self.prompt_length}"
            )
        self.med, self.tokenizer, self.config = med, tokenizer, config
        self.ramp = 0.0
        if self.contrastive:
            self.temperature = nn.Parameter(torch.tensor(config.temperature))
            self.momentum = Momentum(med, config.momentum, config.queue_size)

    @torch.no_grad()
    def start_step(self, ramp: float) -> None:
        """Before each optimiser step: clamp tau, move the momentum copies, set the ramp of alpha."""
        self.ramp = ramp
        if self.contrastive:
            self.temperature.clamp_(0.001, 0.5)
            self.momentum.update(self.med)

    def forward(self, batch: TrainBatch) -> dict[str, Tensor]:
        """Terms as scalars: itc, itm, lm (those with a weight), each times its weight."""
        states = self.med.vision(batch.pixels)
        kv = self.med.cross_kv(states) if self.config.itm or self.config.lm else []
        terms = dict[str, Tensor]()
        if self.contrastive:
            tokens, mask = (x.to(states.device) for x in self.tokenizer.batch(batch.texts))
            itc, i2t, t2i = self._itc(batch.pixels, states, tokens, mask, batch.image_ids)
            terms["itc"] = self.config.itc * itc
            if self.config.itm:
                terms["itm"] = self.config.itm * self._itm(tokens, mask, kv, i2t, t2i, batch.image_ids)
        if self.config.lm:
            terms["lm"] = self.config.lm * self._lm(batch.texts, kv)
        return terms

    def loss(self, batch: TrainBatch) -> Mapping[str, Tensor]:
        """The `Objective` protocol."""
        terms: dict[str, Tensor] = self(batch)
        return terms

    def _itc(
        self, pixels: Tensor, states: Tensor, tokens: Tensor, mask: Tensor, ids: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, and the similarities (B, B + queue) over tau of images with texts and of texts with images."""
        image, text = features(self.med, states, tokens, mask)
        with torch.no_grad():
            slow = self.momentum.med
            image_m, text_m = features(slow, slow.vision(pixels), tokens, mask)
        with torch.autocast(pixels.device.type, enabled=False):
            tau = self.temperature
            images, texts, all_ids = self.momentum.keys(image_m, text_m, ids)
            i2t, t2i = image @ texts.T / tau, text @ images.T / tau
            with torch.no_grad():
                i2t_targets = self._targets(image_m @ texts.T / tau, ids, all_ids)
                t2i_targets = self._targets(text_m @ images.T / tau, ids, all_ids)
            loss = (_cross_entropy(i2t, i2t_targets) + _cross_entropy(t2i, t2i_targets)) / 2
        if self.training:
            self.momentum.enqueue(image_m, text_m, ids)
        return loss, i2t.detach(), t2i.detach()

    def _targets(self, similarity: Tensor, ids: Tensor, all_ids: Tensor) -> Tensor:
        """alpha * softmax(momentum similarity / tau) + (1 - alpha) * hard targets: (B, B + queue)."""
        if self.config.positives:
            hard = (ids[:, None] == all_ids[None, :]).float()
            hard = hard / hard.sum(-1, keepdim=True)
        else:
            hard = torch.eye(len(ids), len(all_ids), device=ids.device)
        alpha = self.config.alpha * self.ramp
        return alpha * similarity.softmax(-1) + (1 - alpha) * hard

    def _itm(self, tokens: Tensor, mask: Tensor, kv: list[KV], i2t: Tensor, t2i: Tensor, ids: Tensor) -> Tensor:
        """3B pairs: (image, its text), (a hard image, the text), (the image, a hard text)."""
        n = len(ids)
        own = torch.arange(n, device=ids.device)
        image_of, image_there = hard_negatives(t2i[:, :n], ids, self.config.hard_floor)
        text_of, text_there = hard_negatives(i2t[:, :n], ids, self.config.hard_floor)
        images = torch.cat([own, image_of[image_there], own[text_there]])
        texts = torch.cat([own, own[image_there], text_of[text_there]])
        logits = self.med.itm_logits(tokens[texts], mask[texts], select_kv(kv, images))
        match = torch.zeros(len(images), device=ids.device)
        match[:n] = 1.0
        alpha = self.config.itm_alpha * self.ramp
        if alpha:
            match = torch.lerp(match, match_probability(i2t, t2i)[images, texts], alpha)
        return F.cross_entropy(logits.float(), torch.stack([1 - match, match], dim=-1))

    def _lm(self, texts: list[str], kv: list[KV]) -> Tensor:
        """Next-token cross-entropy; token 0 and the prompt are not predicted, pads are left out."""
        tokens, mask = (x.to(kv[0][0].device) for x in self.tokenizer.batch(texts, self.config.prompt))
        skip = self.prompt_length
        logits = self.med.lm_logits(tokens[:, :-1], kv)[:, skip - 1 :]
        labels = tokens.masked_fill(~mask, -100)[:, skip:]
        smoothing = self.config.label_smoothing
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), label_smoothing=smoothing)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over rows of -sum(target * log softmax(logit))."""
    return -(targets * logits.log_softmax(-1)).sum(-1).mean()
