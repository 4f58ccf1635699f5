"""Compare training steps of teacher and student, after checking that both ways compute the same loss."""

import copy
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from engine.runtime import Runtime
from losses import build_kd
from losses.task import TaskLoss, compute_avg_factor
from models import build_model
from models.label_noise import LabelNoise
from models.segmentor import Segmentor
from scripts.study import as_released
from scripts.study.benchmarks.comparison import BenchmarkConfig, Comparison, measure_medians
from scripts.study.benchmarks.inputs import CONVENTION, make_label_maps, mark_ignored, repeat_draws
from train_student import StudentStep
from train_teacher import TeacherStep
from utils.errors import UserError
from utils.seeding import RowGenerator

SGD = {"lr": 0.001, "momentum": 0.9, "weight_decay": 1e-4}
EQUAL = 1e-6  # relative, in float32
NEARLY_EQUAL = 1e-4  # on a GPU or compiled, where sums are taken in other orders
CWD = {"student_channels": 128, "teacher_channels": 128}
Loss = Callable[[int], Tensor]  # of iteration i


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
        self.plain_image = CONVENTION.normalize(self.image)
        self.target = mark_ignored(self.label)
        self.what = f"{count} images of {size[0]}x{size[1]}"

    def make_loss(self, wrapped: nn.Module, runtime: Runtime) -> Loss:
        """Return our loss as the training loop calls it."""

        def compute_loss(i: int) -> Tensor:
            with runtime.autocast():
                x = CONVENTION.normalize(self.image)
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
    check = {"relative difference of the losses": difference, **measure_work(plain, times, runtime.device)}
    peak_mib = {}
    if runtime.device.type == "cuda":
        peak_mib = {name: measure_peak_mib(step) for name, step in steps.items()}
    return Comparison(what, times, check, num_classes, peak_mib)


def measure_work(plain: Way, seconds: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Return the operations of a step, those of each way in a second, and what the device reaches at best.

    That is measured on a product of matrices. A network with grouped convolutions has no result: the counter takes
    their backward passes for dense ones.

    seconds: the time of a step by way.
    """
    if any(isinstance(part, nn.Conv2d) and part.groups > 1 for part in plain.module.modules()):
        return {}
    with FlopCounterMode(display=False) as counter:
        plain.loss(0).backward()
    work = counter.get_total_flops() / 1e9
    side = 2048
    matrix = torch.randn(side, side, device=device)
    product_seconds = measure_medians({"product": lambda _: matrix @ matrix}, 10, 1, device)["product"]
    return {
        "GFLOP of a step": work,
        **{f"GFLOP/s, {name}": work / of_step for name, of_step in seconds.items()},
        "GFLOP/s of a product of matrices": 2 * side**3 / 1e9 / product_seconds,
    }


def measure_peak_mib(step: Callable[[int], Tensor]) -> float:
    """Return the most GPU memory that a step takes besides what is held before it, in MiB."""
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step(0)
    return (torch.cuda.max_memory_allocated() - held) / 2**20


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
