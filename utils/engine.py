"""The training loop of both scripts: SGD, polynomial decay, logs, validation, checkpoints, resume."""

import fcntl
import math
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset

from utils import checkpoint
from utils.config import TrainConfig, save_yaml
from utils.distributed import World, all_reduce_mean, any_process, barrier, broadcast_buffers, wrap
from utils.errors import UserError
from utils.evaluate import Predictor, evaluate
from utils.loader import train_batches
from utils.logger import RunLogger, environment
from utils.metrics import Metrics
from utils.pixels import CONVENTIONS
from utils.seeding import derive_seed
from utils.types import Draw

AMP_DTYPES = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
STOPPED_STATUS = 3  # exit status of a run that a signal stopped after saving itself
# settings that may differ between the two halves of a resumed run: none of them changes what is computed
RESUMABLE = {
    "recipe", "data", "workers", "save_dir", "save_per_iters", "val_per_iters", "log_iter", "skip_val", "resume",
    "overwrite", "device", "pretrained_base", "pretrained", "cache_gb",
}  # fmt: skip


def learning_rate(config: TrainConfig, iteration: int) -> float:
    """``(lr - min_lr) * (1 - i / max_iterations)^power + min_lr``, i from 0, after an optional linear warm-up."""
    decayed = (config.lr - config.min_lr) * (1 - iteration / config.max_iterations) ** config.power + config.min_lr
    if iteration < config.warmup_iterations:
        return decayed * (0.1 + 0.9 * iteration / config.warmup_iterations)
    return decayed


def open_run(config: TrainConfig, world: World) -> tuple[Path, dict[str, Any] | None]:
    """The run's folder, and the state to continue from, if any. Nothing that exists is touched.

    Raises:
        UserError: the folder cannot be written, holds a run that is neither resumed nor overwritten, the checkpoint
            to resume is missing or damaged, or it is of a run with other settings.
    """
    folder = Path(config.save_dir).expanduser()
    last = folder / "last.pth"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{world.rank}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--save-dir {folder} cannot be written: {error.strerror}") from error
    if world.is_main:
        _lock(folder)
    if config.resume == "auto":
        source = last if last.exists() else None
    else:
        source = Path(config.resume).expanduser() if config.resume else None
        if source is not None and not source.is_file():
            raise UserError(f"--resume {source}: no such file")
        if last.exists() and not config.overwrite and (source is None or source.resolve() != last.resolve()):
            raise UserError(f"--save-dir {folder} holds a run: --resume auto continues it, --overwrite starts anew")
    if source is None:
        return folder, None
    state = checkpoint.read(source)
    if "optimizer" not in state:
        raise UserError(f"--resume {source} holds no training state; --pretrained starts a new run from its weights")
    old, new = state["config"], asdict(config)
    changed = [f"{k}: {old.get(k)!r} -> {new[k]!r}" for k in new if k not in RESUMABLE and _plain(new[k]) != old.get(k)]
    if changed:
        raise UserError(f"--resume {source} is of a run with other settings ({'; '.join(changed)})")
    return folder, state


def _lock(folder: Path) -> None:
    """Keep a second run out of the folder for as long as this process lives."""
    file = (folder / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise UserError(f"--save-dir {folder} is in use by another run") from None
    _locks.append(file)


_locks: list[Any] = []  # open files: the lock ends with the process, however that ends


def fit(
    step: nn.Module,
    model: nn.Module,
    train_set: Dataset,
    val_set: Dataset,
    predict: Predictor,
    config: TrainConfig,
    world: World,
    folder: Path,
    state: Mapping[str, Any] | None,
    card: Mapping[str, Any],
    picture: Callable[[], np.ndarray] | None = None,
) -> Metrics | None:
    """Train ``step`` and return the last validation's metrics.

    step: ``(image, label, draw) -> {"loss": ..., named terms}``; model: the network inside it that is being trained.
    train_set: an endless sequence of samples (see ``loader.train_batches``). folder, state: of ``open_run``.
    card: what ``eval.py`` needs to rebuild the model, stored in every checkpoint. picture: RGB for TensorBoard.

    Raises:
        UserError: batch size not divisible, non-finite loss, BatchNorm on a single value.
        SystemExit: a signal asked to stop; the run is saved first.
    """
    if config.batch_size % world.size:
        raise UserError(f"--batch-size {config.batch_size} does not divide over {world.size} processes")
    step.to(world.device)
    learnable = [p for p in step.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learnable, config.lr, config.momentum, weight_decay=config.weight_decay)
    amp = AMP_DTYPES[config.amp]
    scaler = torch.amp.GradScaler(world.device.type, enabled=amp is torch.float16)
    progress = {"iteration": 0, "best_miou": None, "best_iteration": None}
    if state is not None:
        checkpoint.load_weights(model, state["model"], "the resumed checkpoint")
        _load_losses(step, state["losses"])
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        progress = {key: state[key] for key in progress}
    wrapped = wrap(step, world.device)
    start = progress["iteration"]
    if start >= config.max_iterations:
        if world.is_main:
            print(f"{folder} is finished: {start} iterations, best mIoU {_percent(progress['best_miou'])}")
        return None
    settings = _plain(asdict(config))
    header = {
        "world_size": world.size,
        **environment(world.device),
        "config": settings,
        "card": dict(card),
    }
    if world.is_main:
        save_yaml(config, folder / "config.yaml")
    logger = RunLogger(folder, world.is_main, start, config.max_iterations, header)
    convention = CONVENTIONS[config.pixels]
    share = config.batch_size // world.size
    metrics: Metrics | None = None

    def save(name: str, training: bool) -> None:
        """Every process takes part: running statistics are rank 0's from here on."""
        finite.check()
        broadcast_buffers(model)
        if world.is_main:
            content = {**card, **progress, "config": settings, "model": model.state_dict()}
            if training:
                content |= {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}
                content |= {"losses": _losses_state(step)}
            checkpoint.save(content, folder / name)
        barrier()

    def validate(iteration: int) -> Metrics:
        finite.check()
        broadcast_buffers(model)
        result = evaluate(predict, val_set, card["num_classes"], world, config.workers, config.seed)
        scores = {"miou": _or_none(result.miou()), "pixel_accuracy": _or_none(result.pixel_accuracy)}
        names = card["class_names"]
        per_class = {f"iou/{name}": _or_none(v) for name, v in zip(names, result.iou.tolist(), strict=True)}
        logger.scalars("val", scores, iteration)
        logger.record({"event": "val_iou", "iteration": iteration, **per_class})
        if picture is not None and world.is_main:
            logger.picture("val/prediction", picture(), iteration)
        best = progress["best_miou"]
        if scores["miou"] is not None and (best is None or scores["miou"] > best):
            progress.update(best_miou=scores["miou"], best_iteration=iteration)
            save("best.pth", training=False)
        return result

    def not_finite(iteration: int, terms: Mapping[str, float]) -> str:
        first = iteration * config.batch_size + world.rank * share
        files = ", ".join(str(train_set.source(p)) for p in range(first, first + share))
        values = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
        return f"the loss is not finite at iteration {iteration + 1} ({values}); {folder} is untouched; images: {files}"

    stopping, finite = _StopRequest(), _FiniteWatch(not_finite)
    batches = train_batches(train_set, start, config.max_iterations, config.batch_size, config.workers, world)
    clock, clocked = time.perf_counter(), start
    try:
        for iteration, (image, label) in enumerate(batches, start):
            lr = learning_rate(config, iteration)
            for group in optimizer.param_groups:
                group["lr"] = lr
            train_mode(wrapped, config.freeze_bn)
            torch.manual_seed(derive_seed(config.seed, 1, iteration, world.rank))  # dropout
            draw = Draw(derive_seed(config.seed, 2, iteration), world.rank * share, config.batch_size)
            with torch.autocast(world.device.type, dtype=amp, enabled=amp is not None):
                terms = _forward(wrapped, convention.normalize(image), label.long(), draw)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(terms["loss"]).backward()
            scaler.step(optimizer)
            scaler.update()

            done = progress["iteration"] = iteration + 1
            last = done == config.max_iterations
            finite.watch(iteration, terms)
            if done % config.log_iter == 0 or last or done == 1:
                now = time.perf_counter()
                speed = config.batch_size * (done - clocked) / (now - clock)
                means = {name: all_reduce_mean(term.detach().clone()).item() for name, term in terms.items()}
                logger.scalars("train", {**means, "lr": lr, "images_per_second": speed}, done)
                clock, clocked = time.perf_counter(), done
            logger.advance(done)
            if last or (not config.skip_val and done % config.val_per_iters == 0):
                before = time.perf_counter()
                metrics = validate(done)
                clock += time.perf_counter() - before
            stop = stopping.requested(done % config.log_iter == 0 or world.size == 1, world)
            if last or stop or done % config.save_per_iters == 0:
                save("last.pth", training=True)
            if stop and not last:
                logger.say(f"stopped by a signal after iteration {done}; --resume auto continues")
                raise SystemExit(STOPPED_STATUS)
    finally:
        batches.close()
        stopping.restore()
        logger.close()
    return metrics


def _losses_state(step: nn.Module) -> dict[str, Tensor]:
    """What the step learns besides the network: projections of distillation losses, memory queues."""
    return {k: v for k, v in step.state_dict().items() if not k.startswith(("model.", "teacher."))}


def _load_losses(step: nn.Module, saved: Mapping[str, Tensor]) -> None:
    if saved.keys() != _losses_state(step).keys():
        raise UserError("the resumed checkpoint was trained with other losses")
    step.load_state_dict(dict(saved), strict=False)  # strict within the losses: the keys were compared


def train_mode(module: nn.Module, freeze_bn: bool) -> None:
    module.train()
    if freeze_bn:
        for part in module.modules():
            if isinstance(part, _BatchNorm):
                part.eval()


def _forward(step: nn.Module, image: Tensor, label: Tensor, draw: Draw) -> dict[str, Tensor]:
    try:
        return step(image, label, draw)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"BatchNorm sees one value per channel: this network pools to a 1x1 map, which needs at least 2 images a "
            f"process (here {len(image)}); raise --batch-size, use fewer processes, or --freeze-bn"
        ) from error


class _FiniteWatch:
    """Stops at a non-finite loss. On CUDA it looks one iteration late, so that the host never waits for the device;
    ``check`` looks at once, before anything is validated or saved.
    """

    def __init__(self, message: Callable[[int, Mapping[str, float]], str]) -> None:
        self.message, self.pending = message, None

    def watch(self, iteration: int, terms: Mapping[str, Tensor]) -> None:
        names = list(terms)
        values = torch.stack([terms[name].detach().float() for name in names])
        copied = None
        if values.is_cuda:
            values, copied = values.to("cpu", non_blocking=True), torch.cuda.Event()
            copied.record()
            self.check()
        self.pending = iteration, names, values, copied
        if copied is None:
            self.check()

    def check(self) -> None:
        """Raises UserError when the last watched loss is not finite."""
        if self.pending is None:
            return
        iteration, names, values, copied = self.pending
        self.pending = None
        if copied is not None:
            copied.synchronize()
        terms = dict(zip(names, values.tolist(), strict=True))
        if not math.isfinite(terms["loss"]):
            raise UserError(self.message(iteration, terms))


class _StopRequest:
    """Remembers SIGTERM, SIGINT and SIGUSR1 so that the loop can save before it ends."""

    def __init__(self) -> None:
        self.received = False
        self.previous = {number: signal.signal(number, self._receive) for number in STOP_SIGNALS}

    def _receive(self, number: int, frame: object) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True

    def requested(self, ask_everyone: bool, world: World) -> bool:
        """The same answer in every process; asked only at iterations where ``ask_everyone`` is true in all."""
        return ask_everyone and any_process(self.received, world.device)

    def restore(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def _plain(value: Any) -> Any:
    """Tuples as lists, the form yaml and json give back."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{100 * value:.2f} %"
