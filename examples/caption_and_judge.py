"""Write a caption for one image, and judge the caption and a web text.

    python examples/caption_and_judge.py [IMAGE [TEXT]]

Works with every model system: name another model, such as
`Salesforce/blip-image-captioning-base`.
"""

import sys
from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

from capfilt.config.decoding import Decoding
from capfilt.models.registry import load_system

SAMPLE = Path(__file__).parents[1] / "data/sample/web/00000.parquet"

first = pq.read_table(SAMPLE).slice(0, 1).to_pylist()[0]
data = Path(sys.argv[1]).read_bytes() if len(sys.argv) > 1 else first["image"]["bytes"]
web_text = sys.argv[2] if len(sys.argv) > 2 else first["text"]
image = Image.open(BytesIO(data)).convert("RGB")

captioner = load_system("tiny/captioner")
captioner.decoding = Decoding(method="nucleus", top_p=0.9, seed=0)
states = captioner.encode([captioner.prepare(image, data)])
caption = captioner.captions(states, uids=["photo"], samples=[0])[0][0]

judge = load_system("tiny/filter")
states = judge.encode([judge.prepare(image, data)])
texts = [judge.clean(text) for text in (web_text, caption.text)]
for text, match in zip(texts, judge.match(states, [texts])[0], strict=True):
    print(f"itc {match.itc:.2f}  itm {match.itm:.2f}  {text}")
