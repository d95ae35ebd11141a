"""BLIP's pre-training objective (paper section 3.2): ITC + ITM + LM, each of which may have the weight 0.

One vision pass serves the three losses. ITC follows ALBEF: momentum copies of the unimodal encoders give the keys and
the soft targets, a queue gives more negatives. ITM draws hard negatives by the contrastive similarities of the batch.
Two texts of one image are never each other's negatives in ITM. The official code does not exclude them, and
bootstrapped data has such pairs. Similarities, softmaxes and losses are float32 also under autocast.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capfilt.errors import ConfigError
from capfilt.models.blip.adapter import Blip
from capfilt.models.blip.image import ImageProcessor
from capfilt.models.blip.layers import KV
from capfilt.models.blip.med import MED
from capfilt.models.blip.text import TextLayer
from capfilt.models.blip.tokenizer import TextTokenizer
from capfilt.models.blip.vision import VisionBlock
from capfilt.training.batch import TrainBatch
from capfilt.training.objectives.base import HubCard, LossMonitor, Objective
from capfilt.training.objectives.blip.card import hub_card
from capfilt.training.objectives.blip.collapse import CollapseMonitor
from capfilt.training.objectives.blip.initial_model import initial_model
from capfilt.training.objectives.blip.itm import itm_loss
from capfilt.training.objectives.blip.momentum import Momentum, features
from capfilt.training.objectives.blip.settings import KINDS, MODEL_PATHS, BlipRecipe, BlipSettings
from capfilt.training.recipe_sections import Recipe


class BlipObjective(Objective):
    """MED and its losses. `ramp` in [0, 1] scales alpha and grows over the first epochs."""

    recipe_type = BlipRecipe
    kinds = KINDS
    model_paths = MODEL_PATHS
    kept_model_keys = ("dropout", "drop_path")
    vision_prefix = "med.vision."

    def __init__(
        self, med: MED, tokenizer: TextTokenizer, settings: BlipSettings, processor: ImageProcessor | None = None
    ) -> None:
        """Combine a model with its losses.

        Args:
            med: the model, with the halves that the losses need.
            tokenizer: with the longest text in tokens.
            settings: the losses.
            processor: image processor of the saved model; default: MED's image size, CLIP's mean and std.

        Raises:
            ConfigError: MED does not have the half that a loss needs, or the prompt leaves no room for a text.
        """
        super().__init__()
        self.contrastive = settings.contrastive
        if (self.contrastive and not med.config.encoder) or (settings.lm and not med.config.decoder):
            raise ConfigError("objective: a loss is asked for whose half the initial checkpoint does not have")
        self.prompt_length = len(tokenizer.prompt(settings.prompt)) if settings.prompt else 1
        if settings.lm and tokenizer.max_tokens <= self.prompt_length + 1:
            raise ConfigError(
                f"data.max_tokens: {tokenizer.max_tokens} leaves no token after [DEC] and the prompt "
                f"{settings.prompt!r}, which take {self.prompt_length}"
            )
        self.med, self.tokenizer, self.settings = med, tokenizer, settings
        self.processor = processor or ImageProcessor(med.config.vision.image_size)
        self.ramp = 0.0
        if self.contrastive:
            self.temperature = nn.Parameter(torch.tensor(settings.temperature))
            self.momentum = Momentum(med, settings.momentum, settings.queue_size)

    @classmethod
    def create(cls, recipe: Recipe) -> Self:
        """See `Objective.create` and `initial_model`."""
        assert isinstance(recipe, BlipRecipe)
        med, tokenizer = initial_model(recipe)
        med.set_checkpointing(recipe.run.checkpointing)
        augment = recipe.augment
        return cls(med, tokenizer, recipe.objective, ImageProcessor(augment.size, augment.mean, augment.std))

    @property
    def terms(self) -> tuple[str, ...]:
        """itc (also with the weight 0, if ITM needs its similarities), itm, lm."""
        losses = {"itc": self.contrastive, "itm": self.settings.itm, "lm": self.settings.lm}
        return tuple(name for name, used in losses.items() if used)

    def start_step(self, step: int, steps_per_epoch: int) -> None:
        """See `Objective.start_step`; the ramp is that of step `step`."""
        growing = self.settings.alpha_epochs * steps_per_epoch
        self.advance(ramp=min(1.0, step / growing) if growing else 1.0)

    @torch.no_grad()
    def advance(self, ramp: float) -> None:
        """Set the ramp of alpha, clamp tau and move the momentum copies."""
        self.ramp = ramp
        if self.contrastive:
            self.temperature.clamp_(0.001, 0.5)
            self.momentum.update(self.med)

    def forward(self, batch: TrainBatch) -> dict[str, Tensor]:
        """See `Objective.forward`."""
        settings = self.settings
        states = self.med.vision(batch.pixels)
        kv = self.med.cross_kv(states) if settings.itm or settings.lm else []
        terms = dict[str, Tensor]()
        if self.contrastive:
            tokens, mask = (x.to(states.device) for x in self.tokenizer.batch(batch.texts))
            ids = batch.image_ids
            itc, i2t, t2i = self._itc(batch.pixels, states, tokens, mask, ids)
            terms["itc"] = settings.itc * itc
            if settings.itm:
                itm = itm_loss(self.med, (tokens, mask), kv, (i2t, t2i), ids, settings, self.ramp)
                terms["itm"] = settings.itm * itm
        if settings.lm:
            terms["lm"] = settings.lm * self._lm(batch.texts, kv)
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
        if self.settings.positives:
            hard = (ids[:, None] == all_ids[None, :]).float()
            hard = hard / hard.sum(-1, keepdim=True)
        else:
            hard = torch.eye(len(ids), len(all_ids), device=ids.device)
        alpha = self.settings.alpha * self.ramp
        return alpha * similarity.softmax(-1) + (1 - alpha) * hard

    def _lm(self, texts: list[str], kv: list[KV]) -> Tensor:
        """Next-token cross-entropy. Token 0, the prompt and padding are not predicted."""
        tokens, mask = (x.to(kv[0][0].device) for x in self.tokenizer.batch(texts, self.settings.prompt))
        skip = self.prompt_length
        logits = self.med.lm_logits(tokens[:, :-1], kv)[:, skip - 1 :]
        labels = tokens.masked_fill(~mask, -100)[:, skip:]
        smoothing = self.settings.label_smoothing
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), label_smoothing=smoothing)

    def metrics(self) -> dict[str, float]:
        """The learnt temperature, tau."""
        return {"tau": float(self.temperature.detach())} if self.contrastive else {}

    def monitor(self, recipe: Recipe) -> LossMonitor:
        """The monitor that warns if ITM collapses."""
        return CollapseMonitor(self.settings.itm, recipe.optim.warmup_steps)

    @property
    def has_unused_parameters(self) -> bool:
        """True if only ITC is trained, which does not use the cross-attention."""
        return not (self.settings.itm or self.settings.lm)

    def compiled_modules(self) -> Iterable[nn.Module]:
        """The transformer layers of both towers."""
        return (module for module in self.modules() if isinstance(module, VisionBlock | TextLayer))

    def system(self) -> Blip:
        """See `Objective.system`: a BLIP in eval mode."""
        return Blip(self.med, self.tokenizer, self.processor, str(next(self.parameters()).device))

    def save(self, folder: Path) -> None:
        """Write a folder in the hub layout."""
        self.system().save(folder)

    @classmethod
    def hub_card(cls, kind: str) -> HubCard:
        """See `Objective.hub_card`."""
        return hub_card(kind)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over rows of -sum(target * log softmax(logit))."""
    return -(targets * logits.log_softmax(-1)).sum(-1).mean()
