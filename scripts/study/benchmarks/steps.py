"""Whole training steps: 256x256 and 2 images on a CPU, 512x512 and 16 images on a GPU."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from engine.runtime import Runtime
from losses import build_kd
from losses.task import TaskLoss
from models import build_model
from models.label_noise import LabelNoise
from models.segmentor import Segmentor
from scripts.study.benchmarks import as_released
from scripts.study.benchmarks.parts import drawn, label_maps, signed
from scripts.study.benchmarks.timing import BenchmarkConfig, Comparison, medians
from train_student import StudentStep
from train_teacher import TeacherStep
from utils.errors import UserError
from utils.pixels import CONVENTIONS
from utils.types import Draw, count_labelled_per_rank

SGD = {"lr": 0.001, "momentum": 0.9, "weight_decay": 1e-4}
EQUAL = 1e-6  # relative, in float32
CWD = {"student_channels": 128, "teacher_channels": 128}
Loss = Callable[[int], Tensor]  # of iteration i


def network(num_classes: int, in_channels: int, backbone: str = "resnet18_v1s") -> Segmentor:
    """DeepLabV3 without dropout, whose masks would differ."""
    torch.manual_seed(0)
    model = build_model("deeplabv3", backbone, num_classes, in_channels)
    model.set_dropout(0)
    return model


def step(loss: Loss, module: nn.Module, **options: bool) -> Callable[[int], Tensor]:
    """``loss`` with its gradients and the optimizer's step."""
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], **SGD, **options)

    def run(i: int) -> Tensor:
        for group in optimizer.param_groups:
            group["lr"] = SGD["lr"] * (1 - i / 40_000) ** 0.9
        optimizer.zero_grad()
        value = loss(i)
        value.backward()
        optimizer.step()
        return value.detach()

    return run


def teacher_step(num_classes: int, backbone: str = "resnet18_v1s") -> TeacherStep:
    """LAD's: two noised paths, cross entropies, consistency."""
    model, noise = network(num_classes, 4, backbone), LabelNoise(num_classes, "random", 0.03, 100.0)
    distance = build_kd("cwd=5", **CWD, num_classes=num_classes, flag="--consistency")
    return TeacherStep(model, noise, TaskLoss(model.supervision, 0.4), distance).train()


class Batch:
    """Images and labels as each loader gives them: uint8, and float32 with the mean subtracted."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        count, size = (16, (512, 512)) if device.type == "cuda" else (2, (256, 256))
        generator = torch.Generator().manual_seed(0)
        self.image = torch.randint(0, 256, (count, 3, *size), generator=generator, dtype=torch.uint8).to(device)
        self.label = label_maps(count, size, num_classes).to(device)
        self.convention = CONVENTIONS["bgr_mean"]
        self.plain_image, self.target = self.convention.normalize(self.image), signed(self.label)
        self.what = f"{count} images of {size[0]}x{size[1]}, {num_classes} classes"

    def loss(self, wrapped: nn.Module, runtime: Runtime) -> Loss:
        """Ours, as the training loop calls it."""

        def run(i: int) -> Tensor:
            with runtime.autocast():
                x = self.convention.normalize(self.image)
                return wrapped(x, self.label.long(), Draw(i), count_labelled_per_rank(self.label))["loss"]

        return run


def compare(what: str, ours: Loss, plain: Loss, given: Loss, modules: list, config: BenchmarkConfig, runtime: Runtime):
    """Equal losses first, ``given`` being the plain way on our draws; then both steps in alternation."""
    states = [copy.deepcopy(module.state_dict()) for module in modules]
    with torch.no_grad():
        values = ours(0).item(), given(0).item()
    for module, state in zip(modules, states, strict=True):
        module.load_state_dict(state)  # running statistics
    difference = abs(values[0] - values[1]) / abs(values[1])
    if config.amp == "none" and not difference < EQUAL:
        raise UserError(f"{what}: our loss is {values[0]}, the plain one {values[1]}: they do not compute the same")
    ways = {"as released": step(plain, modules[1]), "ours": step(ours, modules[0], fused=True)}
    times = medians(ways, config.rounds, 1, runtime.device)
    check = {"relative difference of the losses": difference}
    # the counter takes backward passes of grouped convolutions for dense
    if not any(isinstance(part, nn.Conv2d) and part.groups > 1 for part in modules[1].modules()):
        with FlopCounterMode(display=False) as counter:
            plain(0).backward()
        matrix = torch.randn(2048, 2048, device=runtime.device)
        product = medians({"": lambda _: matrix @ matrix}, 10, 1, runtime.device)[""]
        check["GFLOP of a step"] = work = counter.get_total_flops() / 1e9
        check |= {f"GFLOP/s, {name}": work / seconds for name, seconds in times.items()}
        check["GFLOP/s of a product of matrices"] = 2 * 2.048**3 / product
    for name in ways if runtime.device.type == "cuda" else ():
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        ways[name](0)
        check[f"MiB at most besides both networks, {name}"] = (torch.cuda.max_memory_allocated() - held) / 2**20
    return Comparison(what, times, check)


def teacher(
    num_classes: int, config: BenchmarkConfig, device: torch.device, backbone: str = "resnet18_v1s"
) -> Comparison:
    """LAD's teacher: two noised paths, cross entropies, consistency, SGD."""
    batch, runtime = Batch(num_classes, device), Runtime(device, amp=config.amp, channels_last=True)
    made = teacher_step(num_classes, backbone)
    plain, noise = copy.deepcopy(made.model).to(device), made.noise
    ours = runtime.prepare(made).train()

    def loss(_: int, sources=((), ())) -> Tensor:
        planes = [as_released.noised_label(batch.target, num_classes, 0.03, *source) for source in sources]
        return as_released.teacher_loss(plain, batch.plain_image, batch.target, planes)

    def given(i: int) -> Tensor:
        return loss(i, [drawn(noise, batch.label, Draw(i), path) for path in (0, 1)])

    what, modules = f"teacher step, {backbone}, {batch.what}", [ours, plain]
    return compare(what, batch.loss(ours, runtime), loss, given, modules, config, runtime)


def student(num_classes: int, config: BenchmarkConfig, device: torch.device) -> Comparison:
    """LAD's student: frozen assisted teacher, cross entropies, channel-wise distillation, SGD."""
    batch, runtime = Batch(num_classes, device), Runtime(device, amp=config.amp, channels_last=True)
    noise = LabelNoise(num_classes, "fixed", 0.02, 100.0)
    assisted, model, plain = network(num_classes, 4), network(num_classes, 3), network(num_classes, 4)
    plain_teacher = copy.deepcopy(assisted).to(device).eval().requires_grad_(False)
    widened = plain.state_dict()  # the fourth channel sees zeros, its weights do not matter
    for key, weight in model.state_dict().items():
        widened[key][:, :3].copy_(weight) if weight.shape != widened[key].shape else widened[key].copy_(weight)
    plain = plain.to(device).train()
    kd = build_kd("cwd=3", **CWD, num_classes=num_classes)
    ours = runtime.prepare(StudentStep(model, TaskLoss(model.supervision, 0.02), assisted, noise, kd)).train()

    def loss(_: int, code=lambda j, k: (k * 21 / num_classes - 11) / 10, pixels=torch.randn_like) -> Tensor:
        plane = as_released.noised_label(batch.target, num_classes, 0.02, code, pixels)
        return as_released.student_loss(plain, plain_teacher, batch.plain_image, batch.target, plane)

    def given(i: int) -> Tensor:
        return loss(i, *drawn(noise, batch.label, Draw(i), 0))

    what, modules = f"student step, {batch.what}", [ours, plain]
    return compare(what, batch.loss(ours, runtime), loss, given, modules, config, runtime)
