"""The training loop of both scripts: polynomial decay, logs, validation, checkpoints, resume."""

import math
import time
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from utils.errors import UserError
from utils.memory import require_memory
from utils.pixels import CONVENTIONS
from utils.seeding import derive_seed
from utils.training.configuration import TrainConfig
from utils.training.evaluation import Predictor, evaluate
from utils.training.guards import FiniteWatch, InStep, NotFinite, Stopped, StopRequest, forward
from utils.training.loader import train_batches
from utils.training.logs import RunLogger, assisted, environment
from utils.training.metrics import Metrics, or_none
from utils.training.preview import preview
from utils.training.runs import BEST, Run
from utils.training.runtime import Runtime
from utils.training.state import TrainingState
from utils.training.step import Step
from utils.types import Draw

INPUT_BYTES = 3 * 4 + 8 + 1  # of a pixel: normalised image, label, weight
CHECK = "scripts/data/check_data.py counts the pixels of each"
SMALLER = "a smaller --batch-size or --crop-size, or --accumulate"


def learning_rate(config: TrainConfig, iteration: int) -> float:
    """``(lr - min_lr) * (1 - i / max_iterations)^power + min_lr``, i from 0, after an optional linear warm-up."""
    decayed = (config.lr - config.min_lr) * (1 - iteration / config.max_iterations) ** config.power + config.min_lr
    if iteration < config.warmup_iterations:
        return decayed * (0.1 + 0.9 * iteration / config.warmup_iterations)
    return decayed


def fit(step: Step, data: Any, predict: Predictor, run: Run, config: TrainConfig, runtime: Runtime) -> Metrics | None:
    """Train ``step`` and return the last validation's metrics.

    Its ``model`` is what is evaluated by ``predict`` and saved. data: as ``train``'s load gives it.

    Raises:
        UserError: batch size not divisible, non-finite loss, BatchNorm on a single value.
        SystemExit: a signal asked to stop; the run is saved first.
    """
    folder, card, parts = run.folder, run.card, config.accumulate
    if config.batch_size % (runtime.size * parts):
        split = f" in {parts} parts (--accumulate)" if parts > 1 else ""
        raise UserError(f"--batch-size {config.batch_size} does not divide over {runtime.size} processes{split}")
    share = config.batch_size // runtime.size
    size = share // parts * math.prod(config.crop_size) * INPUT_BYTES
    require_memory(size, f"--batch-size {config.batch_size}: the images alone", SMALLER, runtime.device)
    wrapped = runtime.prepare(step)
    state = TrainingState(step, run, config, runtime)
    optimizer, scaler = state.optimizer, state.scaler
    begun, owed = state.iteration, _due(config, state.iteration) and state.validated < state.iteration
    if begun >= config.max_iterations and not owed:
        if run.elsewhere:
            runtime.agree(lambda: run.begin(config))
        if runtime.is_main:
            best = "not measured" if state.best_miou is None else f"{100 * state.best_miou:.2f} %"
            print(f"{folder} is finished: {begun} iterations, best mIoU {best}{assisted(card)}")
        return None
    runtime.agree(lambda: run.begin(config))
    header = {"world_size": runtime.size, **environment(runtime.device), "runtime": runtime.describe()}
    header |= {"config": state.about["config"], "card": dict(card)}
    logger = RunLogger(folder, runtime.is_main, begun, state.validated, config.max_iterations, header)
    logger.say(f"{folder}: " + (f"continues after iteration {begun}" if begun else f"from {card['start']}"))
    logger.say(f"{header['device']}: " + ", ".join(f"{key} {value}" for key, value in header["runtime"].items()))
    convention = CONVENTIONS[config.pixels]
    metrics: Metrics | None = None

    def validate() -> Metrics:
        """Saves first: a validation that fails, or is left because of a signal, is owed and done on resume."""
        if state.saved < state.iteration:
            state.save(finite)
        # label noise of eval.py's default seed: the same for every run, so that seeds of training are comparable
        result = evaluate(predict, data.val, card["num_classes"], runtime, config.workers, asked=stopping)
        scores = {"miou": or_none(result.miou()), "pixel_accuracy": or_none(result.pixel_accuracy)}
        names = card["class_names"]
        per_class = {f"iou/{name}": or_none(v) for name, v in zip(names, result.iou.tolist(), strict=True)}
        if scores["miou"] is None:
            logger.say(f"warning: no score, no {BEST}: no pixel of the validation labels has a class: {CHECK}")
        logger.scalars("val", scores, state.iteration)
        logger.record({"event": "val_iou", "iteration": state.iteration, **per_class})
        predict.model.eval()
        runtime.agree(lambda: logger.picture("val/prediction", preview(predict, data.val, card["palette"]), done))
        state.score(scores["miou"], finite)
        train_mode(step, config.freeze_bn)
        return result

    def not_finite(what: str, iteration: int, terms: Mapping[str, float]) -> str:
        first = iteration * config.batch_size + runtime.rank * share
        files = ", ".join(str(data.train.source(p)) for p in range(first, first + share))
        values = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
        return f"{what} at iteration {iteration + 1} ({values}); nothing of it is saved in {folder}; images: {files}"

    def compute(iteration: int, image: Tensor, label: Tensor) -> dict[str, Tensor]:
        """Gradients and mean terms of this process's share of the batch, one part after another."""
        labelled_per_rank = step.count_labelled_per_rank(label) / parts
        labelled.add_(labelled_per_rank)
        seed, first, means = derive_seed(config.seed, 2, iteration), runtime.rank * share, {}
        for part, (x, y) in enumerate(zip(image.chunk(parts), label.chunk(parts), strict=True)):
            draw = Draw(seed, first + part * len(x), config.batch_size)
            waits = part + 1 < parts and wrapped is not step
            with wrapped.no_sync() if waits else nullcontext():
                with runtime.autocast():
                    terms = forward(wrapped, convention.normalize(x), y.long(), draw, labelled_per_rank)
                scaler.scale(terms["loss"] / parts).backward()
            means = {name: means.get(name, 0) + term.detach() / parts for name, term in terms.items()}
        return means

    stopping, finite, between, done = StopRequest(), FiniteWatch(not_finite), True, begun
    labelled, epoch = torch.zeros((), device=runtime.device), begun + len(data.train.dataset) / config.batch_size
    loaded = train_batches(data.train, begun, config.max_iterations, config.batch_size, config.workers, runtime)
    batches = InStep(loaded, stopping)
    try:
        if owed:
            metrics = validate()
        train_mode(step, config.freeze_bn)
        clock, processor, clocked = time.perf_counter(), time.process_time(), begun
        for iteration, (image, label) in enumerate(batches, begun):
            between = False
            lr = learning_rate(config, iteration)
            for group in optimizer.param_groups:
                group["lr"] = lr
            torch.manual_seed(derive_seed(config.seed, 1, iteration, runtime.rank))  # dropout
            optimizer.zero_grad(set_to_none=True)
            terms = compute(iteration, image, label)
            scaler.step(optimizer)
            scaler.update()

            done = state.iteration = iteration + 1
            last, between = done == config.max_iterations, True
            finite.watch(iteration, terms)
            if done % config.log_iter == 0 or last or done == 1:
                now = time.perf_counter()
                speed = config.batch_size * (done - clocked) / (now - clock)
                if (done >= epoch or (last and not begun)) and not labelled:
                    raise UserError(f"no pixel of the training labels has a class: {CHECK}")
                means = {name: runtime.reduce(term.clone(), "mean").item() for name, term in terms.items()}
                pace = {"images_per_second": speed, "cpu_seconds": time.process_time() - processor}
                logger.scalars("train", {**means, "lr": lr, **pace}, done)
                clock, processor, clocked = time.perf_counter(), time.process_time(), done
            logger.advance(done)
            if _due(config, done):
                before = time.perf_counter(), time.process_time()
                metrics = validate()
                clock += time.perf_counter() - before[0]
                processor += time.process_time() - before[1]
            elif done % config.save_per_iters == 0:
                state.save(finite)
        state.save(finite)  # with the last validation's score
    except Stopped:
        if state.saved < state.iteration:
            state.save(finite)
        logger.say(f"stopped by a signal after iteration {done}; --resume auto continues")
        stopping.leave(runtime)
        raise
    except NotFinite:
        raise
    except Exception:
        # a failure must not cost the work so far: of one process between two iterations, or of several that all know
        if state.saved < state.iteration and (batches.left or (runtime.size == 1 and between)):
            state.save(finite)
        raise
    finally:
        loaded.close()
        stopping.restore()
        logger.close()
    return metrics


def _due(config: TrainConfig, done: int) -> bool:
    """Whether a validation belongs to the end of iteration ``done``."""
    return done == config.max_iterations or (not config.skip_val and done % config.val_per_iters == 0 and done > 0)


def train_mode(module: nn.Module, freeze_bn: bool) -> None:
    module.train()
    if freeze_bn:
        for part in module.modules():
            if isinstance(part, _BatchNorm):
                part.eval()
