"""The training loop of both scripts: polynomial decay, logs, validation, checkpoints, resume."""

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from utils import checkpoint
from utils.distributed import broadcast_statistics
from utils.errors import UserError
from utils.pixels import CONVENTIONS
from utils.seeding import derive_seed
from utils.training.configuration import TrainConfig, save_yaml
from utils.training.evaluation import Predictor, evaluate
from utils.training.guards import STOPPED_STATUS, FiniteWatch, NotFinite, StopRequest, forward
from utils.training.loader import train_batches
from utils.training.logs import RunLogger, assisted, environment
from utils.training.metrics import Metrics, or_none
from utils.training.optimizers import OPTIMIZERS
from utils.training.preview import preview
from utils.training.runs import Run, clear, plain
from utils.training.runtime import Runtime
from utils.types import Draw, valid_pixels


def learning_rate(config: TrainConfig, iteration: int) -> float:
    """``(lr - min_lr) * (1 - i / max_iterations)^power + min_lr``, i from 0, after an optional linear warm-up."""
    decayed = (config.lr - config.min_lr) * (1 - iteration / config.max_iterations) ** config.power + config.min_lr
    if iteration < config.warmup_iterations:
        return decayed * (0.1 + 0.9 * iteration / config.warmup_iterations)
    return decayed


def fit(
    step: nn.Module, data: Any, predict: Predictor, run: Run, config: TrainConfig, runtime: Runtime
) -> Metrics | None:
    """Train ``step`` and return the last validation's metrics.

    step: ``(image, label, draw, valid) -> {"loss": ..., named terms}``, valid of ``valid_pixels``; its ``model`` is
    what is trained, evaluated by ``predict`` and saved. data: as ``train``'s load gives it.

    Raises:
        UserError: batch size not divisible, non-finite loss, BatchNorm on a single value.
        SystemExit: a signal asked to stop; the run is saved first.
    """
    folder, state, _, card = run
    parts = config.accumulate
    if config.batch_size % (runtime.size * parts):
        split = f" in {parts} parts (--accumulate)" if parts > 1 else ""
        raise UserError(f"--batch-size {config.batch_size} does not divide over {runtime.size} processes{split}")
    wrapped = runtime.prepare(step)
    learnable = [p for p in step.parameters() if p.requires_grad]
    optimizer = OPTIMIZERS[config.optimizer](learnable, config)
    scaler = runtime.scaler()
    progress = {"iteration": 0, "best_miou": None, "best_iteration": None}
    if state is not None:
        checkpoint.restore(state, step, optimizer, scaler)
        progress = {key: state[key] for key in progress}
        state.clear()  # nothing of it stays in memory
    begun = progress["iteration"]
    if begun >= config.max_iterations:
        run.close()
        if runtime.is_main:
            print(
                f"{folder} is finished: {begun} iterations, best mIoU {_percent(progress['best_miou'])}{assisted(card)}"
            )
        return None
    settings = plain(asdict(config))
    header = {"world_size": runtime.size, **environment(runtime.device), "runtime": runtime.describe()}
    if runtime.is_main:
        if not begun:
            clear(folder)
        save_yaml(config, folder / "config.yaml")
    header |= {"config": settings, "card": dict(card)}
    logger = RunLogger(folder, runtime.is_main, begun, config.max_iterations, header)
    logger.say(f"{folder}: " + (f"continues after iteration {begun}" if begun else f"from {card['start']}"))
    logger.say(f"{header['device']}: " + ", ".join(f"{key} {value}" for key, value in header["runtime"].items()))
    convention = CONVENTIONS[config.pixels]
    share = config.batch_size // runtime.size
    metrics: Metrics | None = None

    def save(name: str, training: bool) -> None:
        """Every process takes part: running statistics are rank 0's from here on."""
        finite.check(learnable)
        broadcast_statistics(step)
        if runtime.is_main:
            content = {**card, **progress, "config": settings, **checkpoint.weights(step.model)}
            if training:
                content |= checkpoint.training_state(step, optimizer, scaler)
            checkpoint.save(content, folder / name)
        runtime.barrier()

    def validate(iteration: int) -> Metrics:
        finite.check(learnable)
        broadcast_statistics(step)
        # label noise of eval.py's default seed: the same for every run, so that seeds of training are comparable
        result = evaluate(predict, data.val, card["num_classes"], runtime, config.workers)
        scores = {"miou": or_none(result.miou()), "pixel_accuracy": or_none(result.pixel_accuracy)}
        names = card["class_names"]
        per_class = {f"iou/{name}": or_none(v) for name, v in zip(names, result.iou.tolist(), strict=True)}
        logger.scalars("val", scores, iteration)
        logger.record({"event": "val_iou", "iteration": iteration, **per_class})
        if runtime.is_main:
            predict.model.eval()
            logger.picture("val/prediction", preview(predict, data.val, card["palette"]), iteration)
        best = progress["best_miou"]
        if scores["miou"] is not None and (best is None or scores["miou"] > best):
            progress.update(best_miou=scores["miou"], best_iteration=iteration)
            save("best.pth", training=False)
        train_mode(step, config.freeze_bn)
        return result

    def not_finite(what: str, iteration: int, terms: Mapping[str, float]) -> str:
        first = iteration * config.batch_size + runtime.rank * share
        files = ", ".join(str(data.train.source(p)) for p in range(first, first + share))
        values = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
        return f"{what} at iteration {iteration + 1} ({values}); nothing of it is saved in {folder}; images: {files}"

    def compute(iteration: int, image: Tensor, label: Tensor) -> dict[str, Tensor]:
        """Gradients and mean terms of this process's share of the batch, one part after another."""
        valid = valid_pixels(label) / parts
        seed, first, means = derive_seed(config.seed, 2, iteration), runtime.rank * share, {}
        for part, (x, y) in enumerate(zip(image.chunk(parts), label.chunk(parts), strict=True)):
            draw = Draw(seed, first + part * len(x), config.batch_size)
            waits = part + 1 < parts and wrapped is not step
            with wrapped.no_sync() if waits else nullcontext():
                with runtime.autocast():
                    terms = forward(wrapped, convention.normalize(x), y.long(), draw, valid)
                scaler.scale(terms["loss"] / parts).backward()
            means = {name: means.get(name, 0) + term.detach() / parts for name, term in terms.items()}
        return means

    stopping, finite = StopRequest(begun), FiniteWatch(not_finite)
    batches = train_batches(data.train, begun, config.max_iterations, config.batch_size, config.workers, runtime)
    clock, processor, clocked = time.perf_counter(), time.process_time(), begun
    train_mode(step, config.freeze_bn)
    try:
        for iteration, (image, label) in enumerate(batches, begun):
            lr = learning_rate(config, iteration)
            for group in optimizer.param_groups:
                group["lr"] = lr
            torch.manual_seed(derive_seed(config.seed, 1, iteration, runtime.rank))  # dropout
            optimizer.zero_grad(set_to_none=True)
            terms = compute(iteration, image, label)
            scaler.step(optimizer)
            scaler.update()

            done = progress["iteration"] = iteration + 1
            last = done == config.max_iterations
            finite.watch(iteration, terms)
            if done % config.log_iter == 0 or last or done == 1:
                now = time.perf_counter()
                speed = config.batch_size * (done - clocked) / (now - clock)
                means = {name: runtime.reduce(term.clone(), "mean").item() for name, term in terms.items()}
                pace = {"images_per_second": speed, "cpu_seconds": time.process_time() - processor}
                logger.scalars("train", {**means, "lr": lr, **pace}, done)
                clock, processor, clocked = time.perf_counter(), time.process_time(), done
            logger.advance(done)
            if last or (not config.skip_val and done % config.val_per_iters == 0):
                before = time.perf_counter(), time.process_time()
                metrics = validate(done)
                clock += time.perf_counter() - before[0]
                processor += time.process_time() - before[1]
            stop = stopping.requested(done, runtime)
            if last or stop or done % config.save_per_iters == 0:
                save("last.pth", training=True)
            if stop and not last:
                logger.say(f"stopped by a signal after iteration {done}; --resume auto continues")
                raise SystemExit(STOPPED_STATUS)
    except NotFinite:
        raise
    except UserError:
        # an unreadable file must not cost the work so far; several processes could not agree on saving here
        if runtime.size == 1 and progress["iteration"] > begun:
            save("last.pth", training=True)
        raise
    finally:
        batches.close()
        stopping.restore()
        logger.close()
        run.close()
    return metrics


def train_mode(module: nn.Module, freeze_bn: bool) -> None:
    module.train()
    if freeze_bn:
        for part in module.modules():
            if isinstance(part, _BatchNorm):
                part.eval()


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{100 * value:.2f} %"
