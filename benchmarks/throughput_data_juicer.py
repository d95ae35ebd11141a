"""Run Data-Juicer's two operators, with the Python of their own virtual environment, for the throughput benchmark.

    PYTHON throughput_data_juicer.py JOB.json      # {"captioner", "filter", "jpegs", "texts", "new_tokens", "threads"}

Each line of standard input is a number of images; the answer is the seconds that they took, until the input ends.
The operators are unchanged except for the caption's length: `image_captioning_mapper` asks for up to 128 new tokens
and lets the model end, while here it generates as many as every contender. Its filter has ITM only.
This file imports nothing of capfilt.
"""

import functools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

VERSION = "1.6.1"
os.environ["HF_HUB_OFFLINE"] = "1"


def load(job: dict[str, Any]) -> tuple[Any, Any]:
    """Load the mapper and the filter with their models."""
    import torch
    from data_juicer.ops.filter.image_text_matching_filter import ImageTextMatchingFilter
    from data_juicer.ops.mapper.image_captioning_mapper import ImageCaptioningMapper
    from data_juicer.utils.model_utils import get_model

    torch.set_num_threads(job["threads"])
    torch.set_grad_enabled(False)
    mapper = ImageCaptioningMapper(
        hf_img2seq=job["captioner"], keep_original_sample=False, prompt="a picture of ", accelerator="cpu"
    )
    judge = ImageTextMatchingFilter(hf_blip=job["filter"], min_score=0.0, accelerator="cpu")
    captioner, _ = get_model(mapper.model_key, None, False)
    length = {"min_new_tokens": job["new_tokens"], "max_new_tokens": job["new_tokens"]}
    original = captioner.generate

    @functools.wraps(original)
    def generate(**options: Any) -> Any:
        return original(**{**options, **length})

    captioner.generate = generate
    return mapper, judge


def seconds(mapper: Any, judge: Any, job: dict[str, Any], images: int) -> float:
    """Caption and judge images, eight at a time in the mapper, its default; return seconds."""
    from data_juicer.utils.constant import Fields
    from data_juicer.utils.mm_utils import SpecialTokens

    started = time.perf_counter()
    for start in range(0, images, 8):
        part = range(start, min(start + 8, images))
        texts = [f"{SpecialTokens.image} {job['texts'][i]}" for i in part]
        samples = {"text": list(texts), "images": [[job["jpegs"][i]] for i in part]}
        captioned = mapper.process_batched(samples)
        assert len(captioned["text"]) == len(texts)
        for i, own, caption in zip(part, texts, captioned["text"], strict=True):
            for text in (own, caption):
                sample = {"text": text, "images": [job["jpegs"][i]], Fields.stats: {}}
                assert judge.process_single(judge.compute_stats_single(sample)) is not None
    return time.perf_counter() - started


def main() -> None:
    """Run the command line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the operators print goes to standard error
    job = json.loads(Path(sys.argv[1]).read_text())
    mapper, judge = load(job)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(seconds(mapper, judge, job, int(line)), file=answers, flush=True)


if __name__ == "__main__":
    main()
