"""What a user would run without capfilt: transformers, as BLIP's model cards show it, and the same in batches.

*naive*: one image at a time, processor + generate; then for each text BlipForImageTextRetrieval twice, for ITM and for
ITC: five passes of a vision tower per image. *batched*: eight images at a time, and the filter's vision tower once for
all texts of an image, which the cards do not show: what a user who knows the model would write.
"""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipProcessor

from benchmarks.throughput_inputs import PROMPT


class Transformers:
    """Both models of transformers, and the three ways to call them."""

    def __init__(self, captioner: Path, judge: Path, new_tokens: int) -> None:
        self.processor = BlipProcessor.from_pretrained(captioner)
        self.captioner = BlipForConditionalGeneration.from_pretrained(captioner).eval()
        self.judge = BlipForImageTextRetrieval.from_pretrained(judge).eval()
        self.length = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens}

    def _captions(self, inputs: Any) -> list[str]:
        ids = self.captioner.generate(**inputs, **self.length, do_sample=True, top_p=0.9, top_k=0)
        return [text[len(PROMPT) :] for text in self.processor.batch_decode(ids, skip_special_tokens=True)]

    @torch.no_grad()
    def naive(self, jpegs: Sequence[bytes], texts: Sequence[str]) -> list[list[tuple[float, float]]]:
        """Caption one image at a time; return (ITC, ITM) of its text and its caption."""
        scores = []
        for jpeg, text in zip(jpegs, texts, strict=True):
            image = Image.open(BytesIO(jpeg)).convert("RGB")
            [caption] = self._captions(self.processor(image, PROMPT, return_tensors="pt"))
            scores.append([self._judge(image, one) for one in (text, caption)])
        return scores

    def _judge(self, image: Image.Image, text: str) -> tuple[float, float]:
        inputs = self.processor(image, text, return_tensors="pt")
        itm = self.judge(**inputs, use_itm_head=True)[0].softmax(-1)[0, 1]
        itc = self.judge(**inputs, use_itm_head=False)[0][0, 0]
        return float(itc), float(itm)

    @torch.no_grad()
    def batched(self, jpegs: Sequence[bytes], texts: Sequence[str], size: int = 8) -> list[list[tuple[float, float]]]:
        """Do the same as `naive` in batches."""
        scores = []
        for start in range(0, len(jpegs), size):
            images = [Image.open(BytesIO(jpeg)).convert("RGB") for jpeg in jpegs[start : start + size]]
            inputs = self.processor(images, [PROMPT] * len(images), return_tensors="pt")
            captions = self._captions(inputs)
            pairs = [text for both in zip(texts[start : start + size], captions, strict=True) for text in both]
            scores += self._judge_batch(inputs["pixel_values"], pairs)
        return scores

    def _judge_batch(self, pixels: torch.Tensor, pairs: list[str]) -> list[list[tuple[float, float]]]:
        """Return (ITC, ITM) of two texts per image."""
        judge = self.judge
        words = self.processor.tokenizer(pairs, padding=True, return_tensors="pt")
        ids, mask = words["input_ids"], words["attention_mask"]
        states = judge.vision_model(pixels)[0]
        both = states.repeat_interleave(2, dim=0)
        joint = judge.text_encoder(ids, mask, encoder_hidden_states=both, return_dict=True).last_hidden_state
        itm = judge.itm_head(joint[:, 0]).softmax(-1)[:, 1]
        alone = judge.text_encoder(ids, mask, return_dict=True).last_hidden_state
        itc = (_unit(judge.text_proj(alone[:, 0])) * _unit(judge.vision_proj(both[:, 0]))).sum(-1)
        flat = list(zip(itc.tolist(), itm.tolist(), strict=True))
        return [flat[i : i + 2] for i in range(0, len(flat), 2)]

    @torch.no_grad()
    def data_juicer_calls(self, jpegs: Sequence[bytes], texts: Sequence[str]) -> list[list[float]]:
        """Make the calls of Data-Juicer's two operators: processor + generate, then ITM of both texts; no ITC."""
        scores = []
        for jpeg, text in zip(jpegs, texts, strict=True):
            image = Image.open(BytesIO(jpeg)).convert("RGB")
            [caption] = self._captions(self.processor(images=image, text=[PROMPT], return_tensors="pt"))
            inputs = [self.processor(text=one, images=image, return_tensors="pt") for one in (text, caption)]
            scores.append([float(self.judge(**one).itm_score.softmax(-1)[0, 1]) for one in inputs])
        return scores


def _unit(x: torch.Tensor) -> torch.Tensor:
    return F.normalize(x, dim=-1)
