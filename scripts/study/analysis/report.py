"""What scripts/study/compare.py says in words and tables."""

from collections.abc import Sequence
from typing import Any

from scripts.study.analysis import gained_lost, style
from scripts.study.analysis.runs import View


def table(rows: Sequence[dict[str, Any]]) -> str:
    header = ["group", "checkpoint", "n", "mIoU %", "pixel accuracy %", "gain", "95 % interval (images)", "p"]
    lines = []
    for r in rows:
        name = r["group"] + (" (LABEL-ASSISTED)" if r["label_assisted"] else "")
        accuracy = style.spread(r["pixel_accuracy"]) if r["pixel_accuracy"] else "-"
        cells = [name, r["view"]["checkpoint"], str(len(r["miou"])), style.spread(r["miou"]), accuracy]
        cells.append(f"{100 * r['gain']:+.2f}" if "gain" in r else "-")
        if test := r.get("test"):
            cells.append(f"{100 * test['low']:+.2f} .. {100 * test['high']:+.2f} (n {test['images']})")
            cells.append(f"{test['p']:.2g}")
        lines.append(cells + ["-"] * (len(header) - len(cells)))
    return style.markdown(header, lines)


def report(result: dict[str, Any], views: Sequence[View], samples: int) -> str:
    """compare.md."""
    parts, baseline = ["# Comparison of runs\n"], result["baseline"]
    for view in views:
        text = table([row for row in result["rows"] if row["view"] == view._asdict()])
        parts.append(f"## {view.dataset} {view.split}, {view.checkpoint} checkpoint, {view.protocol}\n\n{text}")
    parts.append("mIoU: mean ± standard deviation over n runs, in percent.")
    if baseline:
        parts.append(
            f"Gain: mean mIoU minus that of {baseline}, in points. Interval and p: paired bootstrap over the images "
            f"({samples} resamples, two-sided). They say what another choice of images could change, not another seed: "
            "for that look at the standard deviations."
        )
    if result["gained_lost"]:
        cells = [
            [n, f"{c['run']} / {c['baseline']}", *(style.percent(c[k]) for k in list(gained_lost.CHANGES)[:4])]
            for n, c in result["gained_lost"].items()
        ]
        header = ["group", "runs", *(f"{k} %" for k in list(gained_lost.CHANGES)[:4])]
        parts.append("## Pixels gained and lost\n\n" + style.markdown(header, cells))
    for name, pairs in result["top_confusions"].items():
        lines = [f"- {p['label']} taken for {p['prediction']}: {style.percent(p['share'], 1)} %" for p in pairs]
        parts.append(f"## Largest confusions of {name} (share of the label's pixels)\n\n" + "\n".join(lines))
    if result["notes"]:
        parts.append("## Left out\n\n" + "\n".join(f"- {note}" for note in result["notes"]))
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"
