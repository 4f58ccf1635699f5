"""Measure how a label-assisted teacher reacts to noise and to wrong labels.

    python scripts/study/teacher_robustness.py --teacher runs/teacher/last.pth
    python scripts/study/teacher_robustness.py --teacher runs/dual/last.pth runs/single/last.pth --limit 100 --draws 4

mIoU against the true label while the label plane is made with other pixel noise, with other codes, is zero, or shows
wrong classes in a share of the pixels or regions; and how much predictions differ between draws of the noise. Writes
robustness.md, robustness.json and robustness.png into --output.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.environment import require_packages

require_packages()

import numpy as np
import torch
from tqdm import tqdm

from datasets import build_dataset_for_network, choose_evenly
from datasets.base import SegmentationDataset
from engine.runtime import start_runtime
from models.checkpoints.loading import LoadedNetwork, load_one_of_several
from models.label_noise import LabelNoise, list_fitting_codes
from models.prediction import Predictor
from scripts.study.analysis import style
from scripts.study.analysis.output import save_json, save_text
from scripts.study.analysis.robustness import CORRUPTIONS, Condition, Tally, corrupt_label, draw_robustness
from scripts.study.analysis.text import format_markdown_table, format_mean_std, format_percent
from utils.entry import run_main
from utils.errors import UserError
from utils.options import option, parse_flags
from utils.seeding import WRONG_LABELS_STREAM, RowGenerator, derive_seed


@dataclass(frozen=True)
class RobustnessConfig:
    """Hold the settings of teacher_robustness.py."""

    teacher: tuple[str, ...] = option((), "checkpoints of label-assisted teachers")
    model: str = option("", "package.module:function, where they hold a network of your own")
    dataset: str = option("", "data set (default: the first checkpoint's)")
    data: str = option("", "root folder of the data set (default: the first checkpoint's)")
    split: str = option("val", "part of the data set")
    limit: int | None = option(None, "images, evenly spaced over the split (default: all)", minimum=1)
    draws: int = option(2, "label noises an image is shown with, of seeds --seed, --seed + 1, ...", minimum=2)
    noise: tuple[float, ...] = option((0.0, 0.03, 0.1, 0.3, 1.0), "pixel-noise levels, before scaling", minimum=0)
    near: tuple[float, ...] = option((0.1, 0.3, 1.0), "strengths of codes 'near'", minimum=0)
    wrong: tuple[float, ...] = option(
        (0.1, 0.3, 1.0), "shares of pixels or regions shown a wrong class", minimum=0, maximum=1
    )
    seed: int = option(0, "of noise and wrong labels", minimum=0)
    device: str = option("auto", "where to run", choices=("auto", "cpu", "cuda"))
    output: str = option("runs/robustness", "folder to write to")


def list_conditions(config: RobustnessConfig, trained: LabelNoise) -> list[Condition]:
    """List the conditions that a teacher is scored under. The first is that of its training."""
    codes = trained.config["codes"]
    pixel_std = trained.pixel_std
    num_classes = len(trained.table) - 1
    own = trained.config.get("code_std")
    as_trained = partial(Condition, codes=codes, pixel_std=pixel_std, code_std=own)
    strength = codes if own is None else f"{codes} {own:g}"
    conditions = [as_trained("as trained", f"{strength}, {pixel_std:g}")]
    for std in sorted({*config.noise, pixel_std}):
        conditions.append(as_trained("pixel noise", f"{std:g}", pixel_std=std))
    kinds = list_fitting_codes(num_classes, trained.planes)
    for kind in kinds:
        if kind != "near":
            conditions.append(Condition("codes", kind, kind, pixel_std))
    if "near" in kinds:
        for std in sorted(config.near):
            conditions.append(Condition("codes", f"near {std:g}", "near", pixel_std, code_std=std))
    conditions.append(as_trained("no label", "zero plane", plane=0.0))
    for kind in CORRUPTIONS:
        for share in sorted(config.wrong):
            conditions.append(as_trained(kind, f"{100 * share:g} %", share=share))
    return conditions


def measure_teacher(
    loaded: LoadedNetwork,
    dataset: SegmentationDataset,
    chosen: Sequence[int],
    config: RobustnessConfig,
    device: torch.device,
) -> list[dict[str, Any]]:
    """Score one teacher on the chosen images. Return a record for each condition.

    The first draw of the label noise is the one that eval.py uses with the same seed.

    Raises:
        UserError: an image or its label cannot be read, or no image has a labelled pixel.
    """
    classes = loaded.card.num_classes
    trained = loaded.build_label_noise()
    model = loaded.model.to(device)
    records = []
    for condition in tqdm(list_conditions(config, trained), "conditions", leave=False, disable=None):
        noise = LabelNoise(
            classes,
            codes=condition.codes,
            pixel_std=condition.pixel_std,
            scale=trained.scale * condition.plane,
            code_std=condition.code_std,
        )
        predict = Predictor(model, loaded.convention, noise.to(device))
        tally = Tally(classes, config.draws)
        for i in chosen:
            image, label = dataset.load_sample(i)
            image = image[None].to(device)
            label = label.numpy()
            rng = np.random.default_rng(derive_seed(config.seed, WRONG_LABELS_STREAM, i))
            shown = corrupt_label(label, condition.name, condition.share, classes, rng)
            generators = [RowGenerator(derive_seed(config.seed + d, i)) for d in range(config.draws)]
            planes = torch.from_numpy(shown).to(device).expand(config.draws, -1, -1)
            logits = predict(image.expand(config.draws, -1, -1, -1), planes, generators)
            tally.add(logits.cpu(), label, shown)
        if not tally.confusion.any():
            raise UserError(f"--split {config.split}: none of the {len(chosen)} images has a labelled pixel")
        records.append(asdict(condition) | tally.compute_results())
    return records


def make_tables(results: dict[str, list[dict[str, Any]]]) -> str:
    """Return a table in markdown for each teacher: a row a condition."""
    header = ["condition", "value", "mIoU %", "same class in two draws %", "KL between draws", "follows wrong label %"]
    parts = []
    for name, records in results.items():
        rows = []
        for record in records:
            rows.append(
                [
                    record["name"],
                    record["value"],
                    format_mean_std(record["miou"]),
                    format_percent(record["agreement"]),
                    f"{record['kl']:.4f}",
                    format_percent(record["follows_wrong"], 1),
                ]
            )
        parts.append(f"## {name}\n\n{format_markdown_table(header, rows)}")
    return "\n".join(parts)


EXPLANATION = """\
mIoU against the true label: mean ± standard deviation over the draws of the label noise. Same class, KL: mean over
pairs of draws of the same image, over the labelled pixels; the KL is of class probabilities, in nats. Follows wrong
label: of the pixels whose shown class was wrong, the share predicted as the shown class."""


def main(argv: Sequence[str] | None = None) -> None:
    config = RobustnessConfig(**parse_flags(RobustnessConfig, __doc__, argv))
    if not config.teacher:
        raise UserError("--teacher FILE is missing: the checkpoint of a label-assisted teacher")
    names = [Path(path).resolve().parent.name for path in config.teacher]
    if len(set(names)) < len(names):
        names = config.teacher
    files = dict(zip(names, config.teacher, strict=True))
    if len(files) < len(config.teacher):
        raise UserError("--teacher: the same file twice")
    teachers = {name: load_one_of_several(path, assisted=True, model=config.model) for name, path in files.items()}
    card = next(iter(teachers.values())).card
    for name, loaded in teachers.items():
        if not loaded.card.reads_label:
            raise UserError(f"--teacher {files[name]} sees the image only: there is no label to be robust against")
        data_name, dataset = build_dataset_for_network(
            loaded.card,
            dataset=config.dataset or card.dataset,
            data=config.data or card.data,
            split=config.split,
            source=f"--teacher {files[name]}",
        )
    chosen = choose_evenly(len(dataset), config.limit or len(dataset))
    with start_runtime(config) as runtime:
        results = {}
        for name, loaded in teachers.items():
            results[name] = measure_teacher(loaded, dataset, chosen, config, runtime.device)
    output = Path(config.output).expanduser()
    what = f"{data_name} {config.split}, {len(chosen)} of {len(dataset)} images, {config.draws} draws"
    text = f"# Robustness of label-assisted teachers\n\n{what}\n\n{make_tables(results)}\n{EXPLANATION}\n"
    save_json({"data": what, "teachers": files, "results": results}, output / "robustness.json")
    style.save_figure(draw_robustness(results, what), output / "robustness.png")
    save_text(text, output / "robustness.md")
    print(text)


if __name__ == "__main__":
    run_main(main)
