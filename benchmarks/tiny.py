"""Measure the shipped tiny models on held-out pairs and write the numbers into their cards and `docs/models.md`.

    python -m benchmarks.tiny --pairs photos-val.parquet --train photos-train.parquet --text human_text

The values come from the code of `capfilt eval`. The tables are between `<!-- metrics -->` marks. The JSON goes to
`benchmarks/results/tiny.json`.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from capfilt.evaluation import evaluate_captioner, evaluate_judge, load_pairs
from capfilt.models.blip import Blip, Decoding

ROOT = Path(__file__).parents[1]
JUDGE = {
    "t2i_r1": "text-to-image R@1, ITC",
    "t2i_r10": "text-to-image R@10, ITC",
    "i2t_r1": "image-to-text R@1, ITC",
    "t2i_r1_itm": "text-to-image R@1, ITM re-ranked",
    "t2i_r10_itm": "text-to-image R@10, ITM re-ranked",
    "itc_auc": "ROC AUC of ITC, true text against another row's",
    "itm_auc": "ROC AUC of ITM",
    "kept_matched": "true texts kept at P >= 0.5",
    "kept_mismatched": "wrong texts kept at P >= 0.5",
    "ece": "expected calibration error of ITM",
}
CAPTIONER = {
    "cider": "CIDEr",
    "cider_constant": "CIDEr, one constant caption",
    "cider_nearest": "CIDEr, caption of the nearest training image",
    "bleu4": "BLEU-4",
    "distinct1": "distinct-1",
    "distinct2": "distinct-2",
}


def table(result: dict[str, Any], names: dict[str, str]) -> str:
    """Render a Markdown table of values with their intervals."""
    lines = ["| metric | value | 95 % interval |", "|---|---|---|"]
    for key, label in names.items():
        if key in result:
            low_high = result.get(f"{key}_ci")
            interval = f"{low_high[0]:.3f} - {low_high[1]:.3f}" if low_high else ""
            lines.append(f"| {label} | {result[key]:.3f} | {interval} |")
    return "\n".join(lines)


def insert(path: Path, text: str) -> None:
    """Replace the text between the marks of a Markdown file."""
    marked = re.sub(
        r"(<!-- metrics -->\n).*?(<!-- /metrics -->)",
        lambda m: m[1] + text + "\n" + m[2],
        path.read_text(),
        flags=re.S,
    )
    path.write_text(marked)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", required=True)
    parser.add_argument("--train", required=True)
    parser.add_argument("--text", default="human_text")
    args = parser.parse_args()
    pairs, train = load_pairs(args.pairs, args.text), load_pairs(args.train, args.text)
    results: dict[str, dict[str, Any]] = {}
    for name in ("pretrained", "filter"):
        results[name] = evaluate_judge(Blip.load(ROOT / "models/tiny" / name), pairs)
    captioner = Blip.load(ROOT / "models/tiny/captioner")
    captioner.decoding = Decoding.measured()
    results["captioner"] = evaluate_captioner(captioner, pairs, train)
    out = ROOT / "benchmarks/results/tiny.json"
    out.write_text(json.dumps(results, indent=1) + "\n")
    for name, result in results.items():
        insert(ROOT / f"models/tiny/{name}/README.md", table(result, CAPTIONER if name == "captioner" else JUDGE))
    judged, written = table(results["filter"], JUDGE), table(results["captioner"], CAPTIONER)
    insert(ROOT / "docs/models.md", f"`tiny/filter`\n\n{judged}\n\n`tiny/captioner`\n\n{written}")


if __name__ == "__main__":
    main()
