"""One Markdown table from the JSON files of eval.py.

python scripts/results_table.py runs/quickstart/*/eval.json
"""

import argparse
import json
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="written by eval.py --json")
    rows = [row(file, json.loads(file.read_text())) for file in parser.parse_args().files]
    header = ("run", "network", "input", "iterations", "mIoU %", "pixel accuracy %", "protocol")
    for cells in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(cells) + " |")


def row(file: Path, result: dict) -> tuple[str, ...]:
    seen = "image + label (assisted)" if result["label_assisted"] else "image"
    where = f"{result['dataset']} {result['split']}, {result['images']} images, {result['protocol']}"
    network = f"{result['model']['arch']} {result['model']['backbone']}"
    return (
        file.parent.name,
        network,
        seen,
        str(result["iteration"]),
        _percent(result["miou"]),
        _percent(result["pixel_accuracy"]),
        where,
    )


def _percent(value: float | None) -> str:
    return "not defined" if value is None else f"{100 * value:.2f}"


if __name__ == "__main__":
    main()
