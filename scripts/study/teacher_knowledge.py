r"""Measure how close a teacher's probabilities come to those of reference networks.

    python scripts/study/teacher_knowledge.py --teacher runs/camvid_fpn_short/{baseline,teacher_assisted}-[0-9] \
        --reference runs/camvid_fpn_short/baseline_long-[0-9] --save

What a student gains from a teacher depends on how close the teacher's probabilities come to the true ones, P(y|x), not
on its accuracy (Menon et al., ICML 2021). On training images, where the student meets its teacher, this prints for each
teacher: the entropy of its probabilities, their negative log-likelihood of the label, and their divergence from the
mean of the reference networks' probabilities, which stands in for P(y|x). All are means over labelled pixels, in nats.
An assisted teacher is shown its label as in the student phase: codes of the fixed table.

--save writes knowledge.json into the folder of each teacher. pack_records.py keeps it with the records of the run, from
which results_table.py and experiment_figure.py make a table and a picture.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.environment import require_packages

require_packages()

import torch
from torch import Tensor
from tqdm import tqdm

from datasets import build_dataset_for_network
from datasets.base import SegmentationDataset
from datasets.network_classes import require_classes
from models.checkpoints.loading import LoadedNetwork, load_one_of_several
from models.label_noise import count_planes, list_fitting_codes
from models.prediction import Predictor
from scripts.study.analysis.text import format_markdown_table
from utils.entry import run_main
from utils.errors import UserError
from utils.files import write_text
from utils.options import option, parse_flags
from utils.seeding import RowGenerator, derive_seed
from utils.types import IGNORE_INDEX

# what the recipes show an assisted teacher of a student
CODES = "fixed"
PIXEL_STD = 0.02


@dataclass(frozen=True)
class KnowledgeConfig:
    """Hold the settings of teacher_knowledge.py."""

    teacher: tuple[str, ...] = option((), "runs or checkpoints of teachers")
    reference: tuple[str, ...] = option((), "runs or checkpoints of image-only networks, the best there are")
    model: str = option("", "package.module:function, where they hold a network of your own")
    data: str = option("", "root folder of the data set (default: the first teacher's)")
    split: str = option("train", "part of the data set")
    limit: int = option(100, "images, evenly spaced over the split", minimum=1)
    save: bool = option(False, "write knowledge.json into the folder of each teacher")


def load_network(path: str, model: str) -> LoadedNetwork:
    """Load a run's last checkpoint, or a file. An assisted teacher is shown its label as in the student phase.

    A teacher of one-hot planes keeps its codes.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        file /= "last.pth"
    loaded = load_one_of_several(file, assisted=True, model=model)
    if not loaded.card.reads_label:
        return loaded
    own_codes = loaded.card.label_noise["codes"]
    planes = count_planes(own_codes, loaded.card.num_classes)
    fits = CODES in list_fitting_codes(loaded.card.num_classes, planes)
    return loaded.with_label_noise(codes=CODES if fits else own_codes, pixel_std=PIXEL_STD)


def make_predictor(loaded: LoadedNetwork) -> Predictor:
    """Return what predicts with a network; an assisted one is shown its label."""
    return Predictor(loaded.model, loaded.convention, loaded.build_label_noise())


def sum_over_pixels(log_p: Tensor, log_reference: Tensor, label: Tensor) -> Tensor:
    """Sum over the labelled pixels of an image: entropy, negative log-likelihood, divergence, and their number.

    log_p, log_reference: log-probabilities ``[K, H, W]``. label: ``[H, W]``.
    """
    labelled = label != IGNORE_INDEX
    log_p = log_p[:, labelled]
    log_reference = log_reference[:, labelled]
    true_classes = label[labelled].long()
    entropy = -(log_p.exp() * log_p).sum()
    negative_log_likelihood = -log_p.gather(0, true_classes[None]).sum()
    divergence = (log_reference.exp() * (log_reference - log_p)).sum()
    return torch.stack([entropy, negative_log_likelihood, divergence, labelled.sum().float()]).double()


def measure_teachers(
    teachers: dict[str, Predictor], references: list[Predictor], dataset: SegmentationDataset, limit: int
) -> dict[str, dict[str, float]]:
    """Return each teacher's means over the labelled pixels of evenly spaced images."""
    sums = {name: torch.zeros(4, dtype=torch.float64) for name in teachers}
    count = min(limit, len(dataset))
    for i in tqdm([len(dataset) * n // count for n in range(count)], leave=False, disable=None):
        image, label = dataset.load_sample(i)
        batch = (image[None], label[None], [RowGenerator(derive_seed(0, i))])
        probabilities = torch.stack([reference(*batch)[0].softmax(0) for reference in references])
        log_reference = probabilities.mean(0).clamp_min(1e-12).log()
        for name, teacher in teachers.items():
            sums[name] += sum_over_pixels(teacher(*batch)[0].log_softmax(0), log_reference, label)
    keys = ("entropy", "negative_log_likelihood", "divergence")
    results = {}
    for name, (*totals, pixels) in sums.items():
        results[name] = {key: (total / pixels).item() for key, total in zip(keys, totals, strict=True)}
    return results


def get_run_folder(path: str) -> Path:
    """Return the folder of a run, given by itself or by a checkpoint in it."""
    given = Path(path).expanduser()
    return (given if given.is_dir() else given.parent).resolve()


def save_knowledge(result: dict[str, dict[str, float]], config: KnowledgeConfig, images: int) -> None:
    """Write what was measured of each teacher into its folder, with what it was measured on."""
    references = [get_run_folder(path).name for path in config.reference]
    where = {"split": config.split, "images": images, "references": references}
    for path in config.teacher:
        folder = get_run_folder(path)
        write_text(folder / "knowledge.json", json.dumps({**where, **result[folder.name]}, indent=1) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    config = KnowledgeConfig(**parse_flags(KnowledgeConfig, __doc__, argv))
    if not config.teacher or not config.reference:
        raise UserError("--teacher RUN.. and --reference RUN.. are needed")
    loaded = {path: load_network(path, config.model) for path in config.teacher}
    references = [load_network(path, config.model) for path in config.reference]
    for path, reference in zip(config.reference, references, strict=True):
        if reference.card.reads_label:
            raise UserError(f"--reference {path} reads the label: it says nothing about P(y|x)")
    first = next(iter(loaded.values())).card
    name, dataset = build_dataset_for_network(
        first, first.dataset, config.data or first.data, config.split, config.teacher[0]
    )
    networks = [*loaded.items(), *zip(config.reference, references, strict=True)]
    for path, network in networks[1:]:  # the first was checked with the data set
        require_classes(network.card, dataset.spec, name, path)
    teachers = {get_run_folder(path).name: make_predictor(network) for path, network in loaded.items()}
    if len(teachers) < len(config.teacher):
        raise UserError("--teacher: two of them lie in folders of the same name")
    result = measure_teachers(teachers, [make_predictor(reference) for reference in references], dataset, config.limit)
    head = ["teacher", "entropy", "negative log-likelihood", "divergence from the references"]
    rows = []
    for name, means in result.items():
        rows.append([name, *(f"{value:.4f}" for value in means.values())])
    print(format_markdown_table(head, rows), end="")
    if config.save:
        save_knowledge(result, config, min(config.limit, len(dataset)))


if __name__ == "__main__":
    run_main(main)
