"""The training loop of both scripts: SGD, polynomial decay, logs, validation, checkpoints, resume."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset

from utils import checkpoint
from utils.config import TrainConfig, save_yaml
from utils.distributed import World, all_reduce_mean, barrier, broadcast_statistics, wrap
from utils.errors import UserError
from utils.evaluate import Predictor, evaluate
from utils.guards import STOPPED_STATUS, FiniteWatch, NotFinite, StopRequest
from utils.loader import train_batches
from utils.logger import RunLogger, environment
from utils.metrics import Metrics
from utils.pixels import CONVENTIONS
from utils.runs import Run, clear, plain
from utils.seeding import derive_seed
from utils.types import Draw

AMP_DTYPES = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def learning_rate(config: TrainConfig, iteration: int) -> float:
    """``(lr - min_lr) * (1 - i / max_iterations)^power + min_lr``, i from 0, after an optional linear warm-up."""
    decayed = (config.lr - config.min_lr) * (1 - iteration / config.max_iterations) ** config.power + config.min_lr
    if iteration < config.warmup_iterations:
        return decayed * (0.1 + 0.9 * iteration / config.warmup_iterations)
    return decayed


def fit(
    step: nn.Module,
    model: nn.Module,
    train_set: Dataset,
    val_set: Dataset,
    predict: Predictor,
    config: TrainConfig,
    world: World,
    run: Run,
    card: Mapping[str, Any],
    picture: Callable[[], np.ndarray] | None = None,
) -> Metrics | None:
    """Train ``step`` and return the last validation's metrics.

    step: ``(image, label, draw) -> {"loss": ..., named terms}``; model: the network inside it that is being trained.
    train_set: an endless sequence of samples (see ``loader.train_batches``). run: of ``open_run``.
    card: what ``eval.py`` needs to rebuild the model, stored in every checkpoint. picture: RGB for TensorBoard.

    Raises:
        UserError: batch size not divisible, non-finite loss, BatchNorm on a single value.
        SystemExit: a signal asked to stop; the run is saved first.
    """
    folder, state, _ = run
    if config.batch_size % world.size:
        raise UserError(f"--batch-size {config.batch_size} does not divide over {world.size} processes")
    step.to(world.device, memory_format=torch.channels_last)  # faster on light networks, on a CPU too
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
        run.close()
        if world.is_main:
            print(f"{folder} is finished: {start} iterations, best mIoU {_percent(progress['best_miou'])}")
        return None
    settings = plain(asdict(config))
    header = {"world_size": world.size, **environment(world.device), "config": settings, "card": dict(card)}
    if world.is_main:
        if state is None:
            clear(folder)
        save_yaml(config, folder / "config.yaml")
    logger = RunLogger(folder, world.is_main, start, config.max_iterations, header)
    logger.say(f"{folder}: " + (f"from {card['start']}" if state is None else f"continues after iteration {start}"))
    convention = CONVENTIONS[config.pixels]
    share = config.batch_size // world.size
    metrics: Metrics | None = None

    def save(name: str, training: bool) -> None:
        """Every process takes part: running statistics are rank 0's from here on."""
        finite.check()
        broadcast_statistics(step)
        if world.is_main:
            content = {**card, **progress, "config": settings, "model": model.state_dict()}
            if training:
                content |= {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}
                content |= {"losses": _losses_state(step)}
            checkpoint.save(content, folder / name)
        barrier()

    def validate(iteration: int) -> Metrics:
        finite.check()
        broadcast_statistics(step)
        # label noise of eval.py's default seed: the same for every run, so that seeds of training are comparable
        result = evaluate(predict, val_set, card["num_classes"], world, config.workers)
        scores = {"miou": _or_none(result.miou()), "pixel_accuracy": _or_none(result.pixel_accuracy)}
        names = card["class_names"]
        per_class = {f"iou/{name}": _or_none(v) for name, v in zip(names, result.iou.tolist(), strict=True)}
        logger.scalars("val", scores, iteration)
        logger.record({"event": "val_iou", "iteration": iteration, **per_class})
        if picture is not None and world.is_main:
            predict.model.eval()
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

    stopping, finite = StopRequest(), FiniteWatch(not_finite)
    batches = train_batches(train_set, start, config.max_iterations, config.batch_size, config.workers, world)
    clock, processor, clocked = time.perf_counter(), time.process_time(), start
    try:
        for iteration, (image, label) in enumerate(batches, start):
            lr = learning_rate(config, iteration)
            for group in optimizer.param_groups:
                group["lr"] = lr
            train_mode(wrapped, config.freeze_bn)
            torch.manual_seed(derive_seed(config.seed, 1, iteration, world.rank))  # dropout
            draw = Draw(derive_seed(config.seed, 2, iteration), world.rank * share, config.batch_size)
            with torch.autocast(world.device.type, dtype=amp, enabled=amp is not None):
                x = convention.normalize(image).contiguous(memory_format=torch.channels_last)
                terms = _forward(wrapped, x, label.long(), draw)
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
                pace = {"images_per_second": speed, "cpu_seconds": time.process_time() - processor}
                logger.scalars("train", {**means, "lr": lr, **pace}, done)
                clock, processor, clocked = time.perf_counter(), time.process_time(), done
            logger.advance(done)
            if last or (not config.skip_val and done % config.val_per_iters == 0):
                before = time.perf_counter(), time.process_time()
                metrics = validate(done)
                clock += time.perf_counter() - before[0]
                processor += time.process_time() - before[1]
            stop = stopping.requested(done % config.log_iter == 0 or world.size == 1, world)
            if last or stop or done % config.save_per_iters == 0:
                save("last.pth", training=True)
            if stop and not last:
                logger.say(f"stopped by a signal after iteration {done}; --resume auto continues")
                raise SystemExit(STOPPED_STATUS)
    except NotFinite:
        raise
    except UserError:
        # an unreadable file must not cost the work so far; several processes could not agree on saving here
        if world.size == 1 and progress["iteration"] > start:
            save("last.pth", training=True)
        raise
    finally:
        batches.close()
        stopping.restore()
        logger.close()
        run.close()
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


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{100 * value:.2f} %"
