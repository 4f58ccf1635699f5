"""Time this project's way of training and evaluation against the LAD release's, after checking that both agree.

    python scripts/study/benchmark.py teacher student metric noising
    python scripts/study/benchmark.py teacher-150 --device cuda --amp bf16 --compile

On a CPU one thread's processor time (the clock that neighbours on a shared machine disturb least), on a GPU the time of
day; in alternation, and the median of the rounds counts. Steps are of 2 images of 256x256 on a CPU, of 16 images of
512x512 on a GPU. A new comparison is a function that returns a Comparison, and a line in COMPARISONS.
"""

import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.environment import require_packages

require_packages()

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from datasets import build_train_and_val
from datasets.base import TrainStream
from datasets.transforms import SCALE_RANGE, list_scales, pad
from engine.machine import describe_environment
from engine.metrics import count_confusions
from engine.runtime import Runtime, start_runtime
from losses import build_kd
from losses.task import TaskLoss, compute_avg_factor
from models import build_model
from models.label_noise import LabelNoise
from models.segmentor import Segmentor
from scripts.study import as_released
from scripts.study.analysis.output import save_json
from train_student import StudentStep
from train_teacher import TeacherStep
from utils.bilinear import upsample_argmax
from utils.entry import run_main
from utils.errors import UserError, require_known
from utils.options import option, parse_flags
from utils.pixels import CONVENTIONS
from utils.seeding import AUGMENTATION_STREAM, RowGenerator, derive_seed
from utils.types import IGNORE_INDEX

COUNT = 48
CROP = (512, 512)
CONVENTION = CONVENTIONS["bgr_mean"]
SGD = {"lr": 0.001, "momentum": 0.9, "weight_decay": 1e-4}
EQUAL = 1e-6  # relative, in float32
NEARLY_EQUAL = 1e-4  # on a GPU or compiled, where sums are taken in other orders
CWD = {"student_channels": 128, "teacher_channels": 128}
Loss = Callable[[int], Tensor]  # of iteration i


@dataclass(frozen=True)
class BenchmarkConfig:
    """Hold the settings of benchmark.py."""

    only: tuple[str, ...] = option((), "comparisons to run (default: all)", positional=True)
    rounds: int = option(5, "alternating rounds of each way", minimum=3)
    device: str = option("cpu", "where labels, steps and metric are computed", choices=("auto", "cpu", "cuda"))
    amp: str = option("none", "precision of our steps; the plain ones are float32", choices=("none", "bf16"))
    compile: bool = option(False, "compile our networks by torch.compile")
    json: str = option("", "file for the result")

    def make_runtime(self, device: torch.device) -> Runtime:
        """Return the way in which our steps compute."""
        return Runtime(device, amp=self.amp, channels_last=True, compile=self.compile)


@dataclass
class Comparison:
    """Hold the times of several ways, and how well their results agree.

    seconds: the median time of a sample by way; ratios are against the first way. check: measures of the agreement.
    num_classes: where it matters. peak_mib: the most GPU memory besides both networks by way, in MiB.
    """

    what: str
    seconds: dict[str, float]
    check: dict[str, float] = field(default_factory=dict)
    num_classes: int | None = None
    peak_mib: dict[str, float] = field(default_factory=dict)

    def format_lines(self) -> Iterator[str]:
        """Yield the lines that are printed."""
        yield self.what if self.num_classes is None else f"{self.what}, {self.num_classes} classes"
        first = next(iter(self.seconds.values()), 0)
        for way, seconds in self.seconds.items():
            yield f"  {way:<44} {1000 * seconds:10.2f} ms   {first / seconds:5.2f}x"
        for name, value in self.check.items():
            yield f"  {name}: {value:.6g}"
        for way, mib in self.peak_mib.items():
            yield f"  MiB at most besides both networks, {way}: {mib:.6g}"


def read_clock(device: torch.device) -> float:
    """Return the processor time, which neighbours disturb least; on a GPU the time of day, its queue empty."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def measure_medians(
    ways: dict[str, Callable[[int], object]], rounds: int, count: int, device: torch.device
) -> dict[str, float]:
    """Return the seconds of one call ``way(i)``: the median over the rounds of the mean over ``count`` calls."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(1 + rounds):  # the first round warms up
        for name, way in ways.items():
            start = read_clock(device)
            for i in range(count):
                way(i)
            if number:
                times[name].append((read_clock(device) - start) / count)
    return {name: statistics.median(values) for name, values in times.items()}


def make_label_maps(batch: int, size: tuple[int, int], num_classes: int) -> Tensor:
    """Return label maps of random patches, ignored ones too: uint8 ``[B, H, W]``."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, num_classes + 1, (batch, 1, 8, 8), generator=generator).float()
    index = F.interpolate(coarse, size, mode="nearest")[:, 0]
    return index.masked_fill(index == num_classes, IGNORE_INDEX).to(torch.uint8)


def mark_ignored(label: Tensor) -> Tensor:
    """Return labels as the release's loader gives them: float32, -1 where ignored."""
    return label.float().masked_fill(label == IGNORE_INDEX, -1)


def repeat_draws(
    noise: LabelNoise, label: Tensor, generator: RowGenerator, path: int
) -> tuple[as_released.Code, as_released.Pixels]:
    """Return the codes and the pixel noise that ``noise`` draws, for the release's way of using them."""
    table = noise.table.to(label.device, torch.float32)
    codes = noise.draw_codes(table, len(label), generator, path)
    return lambda j, k: codes[j, k], lambda plane: generator.normal(plane.clone(), 2 * path + 1)


def compare_noising(num_classes: int, config: BenchmarkConfig, device: torch.device) -> Comparison:
    """Compare how the network input of one path is made: random draws, label plane, and the image beside it."""
    label = make_label_maps(16, (512, 512), num_classes).to(device)
    target = mark_ignored(label)
    image = torch.randn(16, 3, 512, 512, device=device)
    noise = LabelNoise(num_classes, "random", 0.03, 100.0).to(device)

    def run_plain(_: int) -> Tensor:
        return torch.cat([image, as_released.make_noised_label(target, num_classes, 0.03)], 1)

    def run_ours(i: int) -> Tensor:
        return noise.add_planes(image, label, RowGenerator(i))

    code, pixels = repeat_draws(noise, label, RowGenerator(0), 0)
    plane_with_our_draws = as_released.make_noised_label(target, num_classes, 0.03, code, pixels)
    check = {"largest difference": float((plane_with_our_draws - run_ours(0)[:, 3:]).abs().max())}
    ways = {
        "as released: a mask for each image and class": run_plain,
        "ours: table look-up, written in place": run_ours,
    }
    what = "label plane of 16 images and their concatenation, 512x512"
    return Comparison(what, measure_medians(ways, config.rounds, 1, device), check, num_classes)


def compare_scores(num_classes: int, config: BenchmarkConfig, device: torch.device) -> Comparison:
    """Compare the way from logits at stride 8 to the sums of a score, for an image of VOC's size."""
    generator = torch.Generator().manual_seed(0)
    smooth = 4 * torch.randn(1, num_classes, 6, 8, generator=generator)
    logits = F.interpolate(smooth, (47, 63), mode="bicubic").contiguous().to(device)
    label = make_label_maps(1, (375, 500), num_classes).to(device)
    target = mark_ignored(label)
    score = as_released.Score(num_classes)
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def run_ours(_: int) -> None:
        classes = upsample_argmax(logits, label.shape[-2:], True)
        confusion.add_(count_confusions(classes, label, num_classes))

    def run_plain(_: int) -> float:
        return as_released.score_image(logits, target, score)

    expected = run_plain(0)
    run_ours(0)
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    miou = (confusion.diagonal() / union.clamp(min=1)).mean().item()
    check = {"difference of the mIoU": abs(miou - expected)}
    ways = {"as released: full-size logits, sums of areas": run_plain, "ours: classes, confusion matrix": run_ours}
    what = "score of a 375x500 image from logits at stride 8"
    return Comparison(what, measure_medians(ways, config.rounds, 5, device), check, num_classes)


def write_voc_like(root: Path) -> None:
    """Write images of VOC's usual size in CamVid's layout: 500x375, about 80 kB of JPEG each, and grey labels."""
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        coarse = rng.integers(0, 256, (24, 32, 3)).astype(np.float32)
        image = cv2.resize(coarse, (500, 375), interpolation=cv2.INTER_CUBIC) + rng.normal(0, 12, (375, 500, 3))
        image = np.clip(image, 0, 255).astype(np.uint8)
        label = rng.integers(0, 12, (5, 7)).astype(np.uint8)
        label = cv2.resize(label, (500, 375), interpolation=cv2.INTER_NEAREST)
        splits = ("train", "val") if i == 0 else ("train",)  # one image is enough for validation
        for split in splits:
            for folder in (split, f"{split}annot"):
                (root / folder).mkdir(exist_ok=True)
            Image.fromarray(image).save(root / split / f"{i:04}.jpg", quality=90)
            Image.fromarray(label).save(root / f"{split}annot" / f"{i:04}.png", quality=90)


def load_as_released(stream: TrainStream, position: int) -> tuple[np.ndarray, np.ndarray]:
    """Load a sample in the order of the LAD release (dataset/voc.py): decode, resize all, subtract the mean, pad, crop.

    The draws are those of ``datasets.transforms.augment_cirkd`` from the same generator. Both results are float32: the
    image ``[3, H, W]``, BGR minus the mean, and the label.
    """
    image_path, label_path = stream.dataset.pairs[stream.get_index(position)]
    rng = np.random.default_rng(derive_seed(stream.seed, AUGMENTATION_STREAM, position))
    image = cv2.imread(str(image_path), cv2.IMREAD_COLOR)
    label = cv2.imread(str(label_path), cv2.IMREAD_GRAYSCALE).astype(np.int32)
    label[label == 11] = IGNORE_INDEX  # CamVid's void
    scales = list_scales(*SCALE_RANGE)
    scale = scales[rng.integers(len(scales))]
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    label = cv2.resize(label, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
    image, label = pad(np.asarray(image, np.float32) - CONVENTION.mean[::-1], label, CROP, (0.0, 0.0, 0.0))
    height, width = CROP
    top = int(rng.integers(label.shape[0] - height + 1))
    left = int(rng.integers(label.shape[1] - width + 1))
    image = np.asarray(image[top : top + height, left : left + width], np.float32)
    label = np.asarray(label[top : top + height, left : left + width], np.float32)
    if rng.random() < 0.5:
        image = image[:, ::-1]
        label = label[:, ::-1]
    return image.transpose(2, 0, 1).copy(), label.copy()


def compare_loaders(config: BenchmarkConfig, device: torch.device) -> Comparison:
    """Compare one training sample from files, and from the cache: same draws, same files."""
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        write_voc_like(Path(folder))
        build = partial(build_train_and_val, "camvid", folder, crop_size=CROP, pad_color=CONVENTION.pad_color)
        stream = build(cache_gb=0.0).train
        cached = build(cache_gb=1.0).train
        ways = {
            "as released": lambda i: load_as_released(stream, i),
            "ours": stream.__getitem__,
            "ours, --cache-gb": cached.__getitem__,
        }
        seconds = measure_medians(ways, config.rounds, COUNT, torch.device("cpu"))
        wrong = 0
        shares = []
        for i in range(COUNT):
            image, label = stream[i]
            plain, plain_label = load_as_released(stream, i)
            wrong += int((label.numpy() != plain_label).sum())
            # padding is the mean to half a grey level, a resized window is all of it to one
            difference = np.abs(CONVENTION.normalize(image[None])[0].numpy() - plain)
            shares.append((difference > 0.5).mean())
    check = {"label pixels that differ": wrong, "share of image values off by more than 0.5": float(np.mean(shares))}
    return Comparison("training sample, 500x375 JPEG to a 512x512 crop", seconds, check)


def build_network(num_classes: int, in_channels: int, backbone: str = "resnet18_v1s") -> Segmentor:
    """Build DeepLabV3 without dropout, whose masks would differ."""
    torch.manual_seed(0)
    model = build_model("deeplabv3", backbone, num_classes, in_channels)
    model.set_dropout(0)
    return model


def make_step(loss: Loss, module: nn.Module, **options: bool) -> Callable[[int], Tensor]:
    """Return a function that computes a loss and its gradients, and takes the optimizer's step."""
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], **SGD, **options)

    def take_step(i: int) -> Tensor:
        for group in optimizer.param_groups:
            group["lr"] = SGD["lr"] * (1 - i / 40_000) ** 0.9
        optimizer.zero_grad()
        value = loss(i)
        value.backward()
        optimizer.step()
        return value.detach()

    return take_step


def build_teacher_step(num_classes: int, backbone: str = "resnet18_v1s") -> TeacherStep:
    """Build LAD's teacher step: two noised paths, cross entropies, consistency."""
    model = build_network(num_classes, 4, backbone)
    noise = LabelNoise(num_classes, "random", 0.03, 100.0)
    distance = build_kd("cwd=5", **CWD, num_classes=num_classes, flag="--consistency")
    return TeacherStep(model, noise, TaskLoss(model.supervision, 0.4), distance).train()


class Batch:
    """Images and labels as each loader gives them: uint8, and float32 with the mean subtracted."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        count = 2
        size = (256, 256)
        if device.type == "cuda":
            count = 16
            size = (512, 512)
        generator = torch.Generator().manual_seed(0)
        self.image = torch.randint(0, 256, (count, 3, *size), generator=generator, dtype=torch.uint8).to(device)
        self.label = make_label_maps(count, size, num_classes).to(device)
        self.convention = CONVENTIONS["bgr_mean"]
        self.plain_image = self.convention.normalize(self.image)
        self.target = mark_ignored(self.label)
        self.what = f"{count} images of {size[0]}x{size[1]}"

    def make_loss(self, wrapped: nn.Module, runtime: Runtime) -> Loss:
        """Return our loss as the training loop calls it."""

        def compute_loss(i: int) -> Tensor:
            with runtime.autocast():
                x = self.convention.normalize(self.image)
                return wrapped(x, self.label.long(), RowGenerator(i), compute_avg_factor(self.label))["loss"]

        return compute_loss


class Way(NamedTuple):
    """Hold a way of training: its loss, and the module whose parameters it trains."""

    loss: Loss
    module: nn.Module


def compare_losses(what: str, ours: Way, plain: Way, config: BenchmarkConfig, runtime: Runtime) -> float:
    """Return the relative difference of both losses at iteration 0. Networks are left as they were.

    Raises:
        UserError: the losses differ by more than rounding, in float32.
    """
    modules = (ours.module, plain.module)
    states = [copy.deepcopy(module.state_dict()) for module in modules]
    allows_tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False  # its rounding would hide an error
    # with gradients, though they are not needed: what is compiled here is what the steps run
    our_value = ours.loss(0).item()
    plain_value = plain.loss(0).item()
    torch.backends.cudnn.allow_tf32 = allows_tf32
    for module, state in zip(modules, states, strict=True):
        module.load_state_dict(state)  # running statistics
    difference = abs(our_value - plain_value) / abs(plain_value)
    is_exact = runtime.device.type == "cpu" and not runtime.compile
    allowed = EQUAL if is_exact else NEARLY_EQUAL
    if config.amp == "none" and not difference < allowed:
        raise UserError(f"{what}: our loss is {our_value}, the plain one {plain_value}: they do not compute the same")
    return difference


def compare_steps(
    what: str,
    num_classes: int,
    ours: Way,
    plain: Way,
    plain_with_our_draws: Loss,
    config: BenchmarkConfig,
    runtime: Runtime,
) -> Comparison:
    """Check that both ways have equal losses, then time both steps in turn.

    plain_with_our_draws: the loss of the plain way with the random numbers of ours. With its own the losses differ.

    Raises:
        UserError: the losses differ by more than rounding, in float32.
    """
    difference = compare_losses(what, ours, Way(plain_with_our_draws, plain.module), config, runtime)
    steps = {
        "as released": make_step(plain.loss, plain.module),
        "ours": make_step(ours.loss, ours.module, fused=True),
    }
    times = measure_medians(steps, config.rounds, 1, runtime.device)
    check = {"relative difference of the losses": difference}
    # the counter takes backward passes of grouped convolutions for dense
    if not any(isinstance(part, nn.Conv2d) and part.groups > 1 for part in plain.module.modules()):
        with FlopCounterMode(display=False) as counter:
            plain.loss(0).backward()
        matrix = torch.randn(2048, 2048, device=runtime.device)
        product = measure_medians({"": lambda _: matrix @ matrix}, 10, 1, runtime.device)[""]
        work = counter.get_total_flops() / 1e9
        check["GFLOP of a step"] = work
        check |= {f"GFLOP/s, {name}": work / seconds for name, seconds in times.items()}
        check["GFLOP/s of a product of matrices"] = 2 * 2.048**3 / product
    peak_mib = {}
    if runtime.device.type == "cuda":
        for name, step in steps.items():
            held = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            step(0)
            peak_mib[name] = (torch.cuda.max_memory_allocated() - held) / 2**20
    return Comparison(what, times, check, num_classes, peak_mib)


def compare_teachers(
    num_classes: int, config: BenchmarkConfig, device: torch.device, backbone: str = "resnet18_v1s"
) -> Comparison:
    """Compare LAD's teacher step: two noised paths, cross entropies, consistency, SGD."""
    batch = Batch(num_classes, device)
    runtime = config.make_runtime(device)
    made = build_teacher_step(num_classes, backbone)
    plain = copy.deepcopy(made.model).to(device)
    noise = made.label_noise
    ours = runtime.prepare(made).train()

    def compute_loss(_: int) -> Tensor:
        planes = [as_released.make_noised_label(batch.target, num_classes, 0.03) for _path in range(2)]
        return as_released.compute_teacher_loss(plain, batch.plain_image, batch.target, planes)

    def compute_loss_with_our_draws(i: int) -> Tensor:
        planes = []
        for path in range(2):
            code, pixels = repeat_draws(noise, batch.label, RowGenerator(i), path)
            planes.append(as_released.make_noised_label(batch.target, num_classes, 0.03, code, pixels))
        return as_released.compute_teacher_loss(plain, batch.plain_image, batch.target, planes)

    what = f"teacher step, {backbone}, {batch.what}"
    our_way = Way(batch.make_loss(ours, runtime), ours)
    plain_way = Way(compute_loss, plain)
    return compare_steps(what, num_classes, our_way, plain_way, compute_loss_with_our_draws, config, runtime)


def compare_students(num_classes: int, config: BenchmarkConfig, device: torch.device) -> Comparison:
    """Compare LAD's student step: frozen assisted teacher, cross entropies, channel-wise distillation, SGD."""
    batch = Batch(num_classes, device)
    runtime = config.make_runtime(device)
    noise = LabelNoise(num_classes, "fixed", 0.02, 100.0)
    assisted = build_network(num_classes, 4)
    model = build_network(num_classes, 3)
    plain = build_network(num_classes, 4)
    plain_teacher = copy.deepcopy(assisted).to(device).eval().requires_grad_(False)
    widened = plain.state_dict()  # the fourth channel sees zeros, its weights do not matter
    for key, weight in model.state_dict().items():
        if weight.shape == widened[key].shape:
            widened[key].copy_(weight)
        else:
            widened[key][:, :3].copy_(weight)
    plain = plain.to(device).train()
    kd = build_kd("cwd=3", **CWD, num_classes=num_classes)
    ours = runtime.prepare(StudentStep(model, TaskLoss(model.supervision, 0.02), assisted, noise, kd)).train()

    def get_fixed_code(_image: int, k: int) -> float:
        return (k * 21 / num_classes - 11) / 10

    def compute_loss(_: int) -> Tensor:
        plane = as_released.make_noised_label(batch.target, num_classes, 0.02, get_fixed_code)
        return as_released.compute_student_loss(plain, plain_teacher, batch.plain_image, batch.target, plane)

    def compute_loss_with_our_draws(i: int) -> Tensor:
        code, pixels = repeat_draws(noise, batch.label, RowGenerator(i), 0)
        plane = as_released.make_noised_label(batch.target, num_classes, 0.02, code, pixels)
        return as_released.compute_student_loss(plain, plain_teacher, batch.plain_image, batch.target, plane)

    what = f"student step, {batch.what}"
    our_way = Way(batch.make_loss(ours, runtime), ours)
    plain_way = Way(compute_loss, plain)
    return compare_steps(what, num_classes, our_way, plain_way, compute_loss_with_our_draws, config, runtime)


LIGHT = ("tf_efficientnet_lite0", "mobilenetv2_100")
COMPARISONS: dict[str, Callable[[BenchmarkConfig, torch.device], Comparison]] = {
    "loader": compare_loaders,
    **{f"noising-{k}": partial(compare_noising, k) for k in (21, 171)},
    **{f"metric-{k}": partial(compare_scores, k) for k in (21, 171)},
    **{f"teacher-{k}": partial(compare_teachers, k) for k in (21, 150)},
    **{f"student-{k}": partial(compare_students, k) for k in (21, 150)},
    **{f"light-{backbone}": partial(compare_teachers, 21, backbone=backbone) for backbone in LIGHT},
}


def main(argv: Sequence[str] | None = None) -> None:
    config = BenchmarkConfig(**parse_flags(BenchmarkConfig, __doc__, argv))
    torch.set_num_threads(1)
    known = dict.fromkeys(name.partition("-")[0] for name in COMPARISONS) | COMPARISONS  # "teacher" is all of them
    for item in config.only:
        require_known(item, known, "comparison")
    wanted = set(config.only or COMPARISONS)
    results = {}
    with start_runtime(config) as runtime:
        for name, compare in COMPARISONS.items():
            kind = name.partition("-")[0]
            if name in wanted or kind in wanted:
                results[name] = compare(config, runtime.device)
                print("\n".join(results[name].format_lines()), flush=True)
        header = {"environment": describe_environment(runtime.device)}
    if config.json:
        save_json(header | {name: asdict(result) for name, result in results.items()}, Path(config.json).expanduser())


if __name__ == "__main__":
    run_main(main)
