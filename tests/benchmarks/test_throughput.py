"""The throughput benchmark runs, and counts right. How fast anything is, no test says."""

import json
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow.parquet as pq
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import throughput
from benchmarks import throughput_flops as flops
from benchmarks.naive import Transformers
from benchmarks.throughput_engine import Engine, captioner, judge
from benchmarks.throughput_extra import alternated
from benchmarks.throughput_inputs import PROMPT, SHAPES, Inputs, make_inputs, make_texts
from benchmarks.throughput_report import svg
from capfilt.models.blip.med import MED

TINY = SHAPES["tiny"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("inputs"), "tiny", 3)


def counted(call: Callable[[], Any], **options: Any) -> int:
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, **options) as counter:
        call()
    return counter.get_total_flops()


def test_self_test_writes_the_promised_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "t.json"
    threads = torch.get_num_threads()
    try:
        arguments = "--images 2 --shape tiny --rounds 1 --new-tokens 4 --data-juicer none --short --json"
        throughput.main([*arguments.split(), str(out)])
    finally:
        torch.set_num_threads(threads)
    result = json.loads(out.read_text())
    for key in ("naive", "batched", "data_juicer_calls", "capfilt_separate", "capfilt_shared", "capfilt_int8"):
        assert result[key] > 0
    assert result["data_juicer"] is None
    assert 0 < result["gemm_share"] < 1
    assert 0 < result["other_share"] < 1
    assert result["breakdown_ms"].keys() >= {"decode", "resize", "vision_filter", "decode_steps", "itm", "itc", "io"}
    assert "| capfilt, fp32, two towers |" in capsys.readouterr().out


def test_all_give_the_same_scores_and_captions_of_the_forced_length(inputs: Inputs, tmp_path: Path) -> None:
    theirs = Transformers(inputs.captioner, inputs.filter, 6)
    naive, batched = (call(inputs.jpegs, inputs.texts) for call in (theirs.naive, theirs.batched))
    reader = captioner(inputs, 6)
    Engine(reader, judge(inputs)).run(inputs.shard, tmp_path / "out.parquet", 3)
    ours = pq.read_table(tmp_path / "out.parquet").to_pylist()
    for row, one, other in zip(ours, naive, batched, strict=True):
        assert other[0] == pytest.approx(one[0], abs=1e-5)
        assert row["itc"][0] == pytest.approx(one[0][0], abs=1e-5)  # transformers' ITM leaves [CLS] for [ENC]
        assert len(reader.tokenizer.ids(row["captions"])[0]) == 6 + 2


def test_flop_of_every_part_is_what_torch_counts() -> None:
    med = MED(TINY).eval()
    pixels = torch.zeros(2, 3, TINY.vision.image_size, TINY.vision.image_size)
    ids, mask = torch.ones(2, 7, dtype=torch.int64), torch.ones(2, 7, dtype=torch.bool)
    with torch.no_grad():
        states = med.vision(pixels)
        kv = med.cross_kv(states)
    heads = flops.linear(1, TINY.text.width, 2), flops.linear(1, TINY.text.width, TINY.embed_dim)
    assert counted(lambda: med.vision(pixels)) == 2 * flops.vision_flop(TINY)
    assert counted(lambda: med.cross_kv(states)) == 2 * flops.cross_kv_flop(TINY)
    both = counted(lambda: (med.itm_logits(ids, mask, kv), med.text_features(ids, mask)))
    assert both == flops.match_flop(TINY, [7, 7]) + 2 * sum(heads)


@pytest.mark.skipif(not flops.HAS_PACKED_LINEAR, reason="torch without oneDNN: no absorbed cross-attention")
def test_executed_flop_is_what_capfilt_does(inputs: Inputs) -> None:
    """Captions to the operation; of the texts, capfilt leaves out the last layer of all but their first tokens."""
    products = {
        torch.ops.mkldnn._linear_pointwise: lambda x, w, *_, **__: flops.linear(x[0], x[1], w[0]),
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, *_, **__: 4 * prod(q) * k[2],
    }
    reader, filter_ = captioner(inputs, 20), judge(inputs)
    for blip in (reader, filter_):
        blip.med.requires_grad_(False)
    states = torch.randn(4, TINY.vision.grid**2 + 1, TINY.vision.width)
    texts = [make_texts(2)] * 4
    with FlopCounterMode(display=False, custom_mapping=products) as counter:
        reader.captions(states, ["a", "b", "c", "d"], [0])
    captions = counter.get_total_flops() / 4
    with FlopCounterMode(display=False, custom_mapping=products) as counter:
        filter_.match(states, texts)
    judged = counter.get_total_flops() / 4
    built = flops.cross_kv_flop(TINY)
    assert captions == flops.decode_flop(TINY, 4, 20) + built - flops.saved_flop(TINY, 23, 24)
    whole = flops.match_flop(TINY, [14, 14]) + built - flops.saved_flop(TINY, 28, 28)
    assert 0.5 * whole < judged < whole


def test_every_other_round_runs_backwards() -> None:
    order: list[str] = []
    ways = {name: lambda name=name: order.append(name) or float(len(order)) for name in "ab"}
    assert alternated(ways, 3) == {"a": 4.0, "b": 3.0}
    assert "".join(order) == "abbaab"


def test_plot_is_xml_with_every_point() -> None:
    drawn = svg({"growth": {"texts": [[1, 0.5], [2, 0.25]], "batch_size": [[1, 0.4]]}})
    tree = ElementTree.fromstring(drawn)
    assert len(tree.findall(".//{*}circle")) == 3


def test_texts_are_known_words(inputs: Inputs) -> None:
    lengths = {len(ids) for ids in judge(inputs).tokenizer.ids(inputs.texts)}
    assert lengths == {14}
    assert len(captioner(inputs, 4).tokenizer.prompt(PROMPT)) == 4
