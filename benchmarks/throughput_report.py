"""Write the tables and the plot of the throughput benchmark, as Markdown and a small SVG."""

from typing import Any

Result = dict[str, Any]

NAMES = {
    "naive": "transformers, as the model card shows",
    "batched": "transformers, batches of 8, each tower once",
    "data_juicer": "Data-Juicer's operators (caption, 2 x ITM; no ITC)",
    "data_juicer_calls": "Data-Juicer's calls, one image at a time (no ITC)",
    "capfilt_separate": "capfilt, fp32, two towers",
    "capfilt_shared": "capfilt, fp32, one shared tower (another model than the paper's pair)",
    "capfilt_int8_captioner": "capfilt, int8 captioner, fp32 filter, two towers",
    "capfilt_int8": "capfilt, int8, two towers",
    "capfilt_bf16": "capfilt, bf16, two towers",
}
AXES = {
    "image_size": "side of the image, px",
    "new_tokens": "new tokens a caption",
    "texts": "texts an image",
    "batch_size": "images a batch of each core",
}


def markdown(result: Result) -> str:
    """Render all results as Markdown."""
    setup = result["setup"]
    lines = [
        f"# Throughput: BLIP-{setup['shape']}, {setup['image_size']} px, random weights",
        "",
        f"{setup['new_tokens']} new tokens, {setup['texts']} texts an image, {setup['threads']} threads, "
        f"torch {setup['torch']}, {setup['processor']}; medians of {setup['rounds']} rounds, order alternated.",
        "",
        "| | images/s | images a round | x naive | x batched | x Data-Juicer | x capfilt fp32 |",
        "|---|---|---|---|---|---|---|",
    ]
    against = [result.get(key) for key in ("naive", "batched", "data_juicer_any", "capfilt_separate")]
    for key, name in NAMES.items():
        if result.get(key):
            ratios = " | ".join(f"{result[key] / base:.2f}" if base else "" for base in against)
            lines.append(f"| {name} | {result[key]:.3f} | {result['images'][key]} | {ratios} |")
    lines += ["", *_limits(result), "", *_breakdown(result), "", *_growth(result)]
    return "\n".join(lines) + "\n"


def _limits(result: Result) -> list[str]:
    flop = result["gflop"]
    lines = [
        f"- GEMM peak of this run: {result['gemm_peak']:.0f} GFLOP/s fp32. Model: {flop['model']:.1f} GFLOP an image "
        f"as written, {flop['executed']:.1f} executed; {100 * result['gemm_share']:.0f} % of the peak during model "
        f"time (vision alone {100 * result['vision_gemm_share']:.0f} %).",
        f"- Outside the model: {100 * result['other_share']:.1f} % of wall time (two towers).",
    ]
    if "n5_over_n1" in result:
        lines.append(f"- 5 captions an image: {result['n5_over_n1']:.2f} x the time of 1 (captioner alone).")
    if "two_actors_over_one" in result:
        lines.append(f"- Two processes of one thread: {result['two_actors_over_one']:.2f} x one of them.")
    if "pipeline" in result:
        pipe = result["pipeline"]
        lines.append(
            f"- `capfilt run`, {pipe['images']} images in {pipe['shards']} shards, {pipe['model']} weights: caption "
            f"and score took {pipe['pipeline_seconds']:.1f} s of workers' time, loading left out, against "
            f"{pipe['bare_seconds']:.1f} s bare ({pipe['pipeline_over_bare']:.2f} x); "
            f"{pipe['wall_seconds']:.1f} s in all."
        )
    return lines


def _breakdown(result: Result) -> list[str]:
    """Render the milliseconds per part, of fp32 with two towers."""
    parts = result["breakdown_ms"]
    return ["| part | ms an image |", "|---|---|", *(f"| {name} | {value:.1f} |" for name, value in parts.items())]


def _growth(result: Result) -> list[str]:
    if not result.get("growth"):
        return []
    lines = ["| growing | value | images/s |", "|---|---|---|"]
    for axis, points in result["growth"].items():
        lines += [f"| {AXES[axis]} | {value} | {speed:.3f} |" for value, speed in points]
    return lines


def svg(result: Result) -> str:
    """One small chart an axis of the growth table: images/s, from 0."""
    top = max(speed for points in result["growth"].values() for _, speed in points)
    charts = [_chart(AXES[axis], points, top, 200 * i) for i, (axis, points) in enumerate(result["growth"].items())]
    width = 200 * len(charts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="190" font-family="sans-serif" '
        f'font-size="11">\n<rect width="{width}" height="190" fill="white"/>\n' + "\n".join(charts) + "\n</svg>\n"
    )


def _chart(title: str, points: list[tuple[int, float]], top: float, left: int) -> str:
    step = 150 / max(len(points) - 1, 1)
    places = [(left + 30 + i * step, 150 - 110 * speed / top) for i, (_, speed) in enumerate(points)]
    line = " ".join(f"{x:.0f},{y:.0f}" for x, y in places)
    parts = [
        f'<text x="{left + 105}" y="14" text-anchor="middle">{title}</text>',
        f'<path d="M{left + 20} 30V150H{left + 190}" fill="none" stroke="#999"/>',
        f'<polyline points="{line}" fill="none" stroke="#1f77b4" stroke-width="2"/>',
    ]
    for (x, y), (value, speed) in zip(places, points, strict=True):
        parts.append(f'<circle cx="{x:.0f}" cy="{y:.0f}" r="3" fill="#1f77b4"/>')
        parts.append(f'<text x="{x:.0f}" y="{y - 7:.0f}" text-anchor="middle">{speed:.2f}</text>')
        parts.append(f'<text x="{x:.0f}" y="166" text-anchor="middle">{value}</text>')
    return "\n".join(parts)
