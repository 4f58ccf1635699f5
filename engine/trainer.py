"""Train a Step: polynomial decay, logs, validation, checkpoints, resume."""

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from datasets import Data, build_train_and_val
from engine.evaluator import evaluate, switch_to_eval
from engine.finite import FiniteWatch, LossNotFinite
from engine.label_watch import COUNT_PIXELS, LabelWatch
from engine.loader import load_train_batches
from engine.lockstep import Lockstep, Stopped, StopRequest
from engine.logger import RunLogger, get_assisted_mark
from engine.machine import describe_environment
from engine.metrics import Metrics, make_json_number
from engine.preview import make_preview
from engine.progress import Progress, describe_finish
from engine.run_folder import BEST, LAST, RunFolder, get_launch_id, open_run_folder
from engine.run_inputs import agree_on_inputs, make_plain
from engine.runtime import Runtime
from engine.settings import TrainConfig
from engine.step import Step
from engine.step_memory import SMALL, estimate_step_memory
from engine.training_state import TrainingState, copy_values, put_back
from models.checkpoints.card import Card
from models.checkpoints.initialise import initialise
from models.prediction import Predictor
from utils.distributed import all_reduce, broadcast_values
from utils.errors import UserError
from utils.memory import GIB, count_sharers, get_free_memory, require_memory
from utils.pixels import CONVENTIONS
from utils.seeding import DROPOUT_STREAM, LABEL_NOISE_STREAM, RowGenerator, derive_seed

INPUT_BYTES = 3 * 4 + 8 + 1  # of a pixel: normalised image, label, weight
LONGEST_WAIT = 20.0  # seconds after the first iteration until the expected end of a run is printed
MAX_SKIPPED = 20  # successive steps that the fp16 loss scaler may skip: from 2^16 it is then below 1


def load_data(settings: TrainConfig) -> Data:
    """Load the training and validation images that the settings name."""
    return build_train_and_val(
        settings.dataset,
        settings.data,
        settings.classes,
        augmentation=settings.augmentation,
        crop_size=settings.crop_size,
        scale_range=settings.scale_range,
        pad_color=CONVENTIONS[settings.pixels].pad_color,
        seed=settings.seed,
        cache_gb=settings.cache_gb,
    )


def train(step: Step, data: Data, settings: TrainConfig, runtime: Runtime) -> Metrics | None:
    """Train a step in its run's folder, from the start or from the folder's checkpoint.

    Raises:
        UserError: the batch cannot be divided or does not fit in memory, the folder cannot be used, a loss is not
            finite, a file cannot be read or written, or the data cannot be trained on.
        Stopped: a signal asked to stop. Everything done so far has been saved.
    """
    check_batch(settings, runtime)
    inputs = agree_on_inputs(settings, data, runtime)
    with closing(open_run_folder(settings, runtime, inputs)) as folder:
        initial_weights = ""
        if folder.source is None:
            initial_weights = initialise(step.model, settings.pretrained_base, settings.pretrained, settings.pixels)
        wrapped = runtime.prepare(step)
        state = TrainingState(step, settings, runtime, initial_weights)
        if folder.source is None:
            state.freeze_norms()
        else:
            folder.restore(state, settings)
        broadcast_values(state.list_buffers_changed_by_forward())  # DDP aligns parameters only
        return Trainer(wrapped, state, data, folder, settings, runtime).run()


def check_batch(settings: TrainConfig, runtime: Runtime) -> None:
    """Check that the batch divides over the ranks and that its images fit in memory.

    Raises:
        UserError: the batch does not divide, or the images do not fit.
    """
    parts = settings.accumulate
    if settings.batch_size % (runtime.size * parts):
        split = f" in {parts} parts (--accumulate)" if parts > 1 else ""
        raise UserError(f"--batch-size {settings.batch_size} does not divide over {runtime.size} processes{split}")
    images = settings.batch_size // runtime.size // parts
    size = images * math.prod(settings.crop_size) * INPUT_BYTES
    advice = "a smaller --batch-size or --crop-size, or --accumulate"
    require_memory(size, f"--batch-size {settings.batch_size}: the images alone", advice, runtime.device)


def compute_learning_rate(settings: TrainConfig, iteration: int) -> float:
    """Return ``(lr - min_lr) * (1 - i / max_iterations)^power + min_lr``, where the iteration i counts from 0.

    During the warm-up, the value is multiplied by a factor that rises linearly from 0.1 to 1.
    """
    remaining = 1 - iteration / settings.max_iterations
    decayed = (settings.lr - settings.min_lr) * remaining**settings.power + settings.min_lr
    if iteration < settings.warmup_iterations:
        return decayed * (0.1 + 0.9 * iteration / settings.warmup_iterations)
    return decayed


class Trainer:
    """Train a Step: optimise, log, validate and save until ``max_iterations``."""

    def __init__(
        self,
        wrapped: nn.Module,
        state: TrainingState,
        data: Data,
        folder: RunFolder,
        settings: TrainConfig,
        runtime: Runtime,
    ) -> None:
        """wrapped: the step as ``Runtime.prepare`` returns it."""
        self.wrapped = wrapped
        self.step = state.step
        self.state = state
        self.data = data
        self.folder = folder
        self.settings = settings
        self.runtime = runtime
        self.images_per_rank = settings.batch_size // runtime.size
        self.convention = CONVENTIONS[settings.pixels]
        self.environment = describe_environment(runtime.device)
        self.card = make_card(state, data, settings)
        self.predictor = Predictor(self.step.model, self.convention, self.step.label_noise, precision=runtime.precision)
        self.first_iteration = state.iteration
        self.saved_iteration = state.iteration
        self.is_mid_step = False
        self.skipped_steps = 0  # successive updates that the loss scaler has skipped, the last one included
        self.has_printed_end = False
        self.label_watch = LabelWatch(data, settings, runtime, state.iteration)
        self.metrics: Metrics | None = None
        self.finite = FiniteWatch(self.explain_not_finite)
        # made by ``run``
        self.stop_request: StopRequest
        self.logger: RunLogger
        self.batches: Lockstep
        self.progress: Progress

    def run(self) -> Metrics | None:
        """Train from the current iteration. Return the metrics of the last validation, None if the run was complete.

        Raises:
            UserError: a loss is not finite, a file cannot be read or written, or the data cannot be trained on.
            Stopped: a signal asked to stop. Everything done so far has been saved. This is a SystemExit.
        """
        must_validate = self.owes_validation()
        if self.state.iteration >= self.settings.max_iterations and not must_validate:
            if not self.folder.resumes_in_place:  # a complete run that is resumed in another folder is copied there
                self.folder.prepare_for_writing(self.settings)
            self.print_already_complete()
            return None
        self.folder.prepare_for_writing(self.settings)
        with (
            StopRequest() as self.stop_request,
            self.open_logger() as self.logger,
            closing(self.load_batches()) as batches,
        ):
            self.print_start()
            self.report_memory()
            self.batches = Lockstep(batches, self.stop_request)
            self.train_and_save(must_validate)
        return self.metrics

    def train_and_save(self, must_validate: bool) -> None:
        """Train until ``max_iterations``, and save the work also where a signal or a failure ends it early."""
        try:
            if must_validate:
                self.validate()
            self.train_all_batches()
            self.save()  # with the last validation's score
        except Stopped:
            self.save_after_signal()
            raise
        except LossNotFinite:  # nothing of such a run is worth saving
            raise
        except Exception:
            self.save_after_failure()
            raise

    def owes_validation(self) -> bool:
        """Return whether the iteration just done, or restored, still lacks the validation that belongs to it."""
        return self.is_validation_due() and self.state.validated < self.state.iteration

    def print_already_complete(self) -> None:
        """Print that the run is complete, and its best score."""
        if not self.runtime.is_main:
            return
        best = "not measured"
        if self.state.best_miou is not None:
            best = f"{100 * self.state.best_miou:.2f} %"
        mark = get_assisted_mark(self.card)
        print(f"{self.folder.path} is finished: {self.state.iteration} iterations, best mIoU {best}{mark}")

    def open_logger(self) -> RunLogger:
        """Open the log of the run, with a first record of what it is."""
        header = {
            "world_size": self.runtime.size,
            "launch": get_launch_id(),
            **self.environment,
            "runtime": self.runtime.describe(),
            "config": make_plain(asdict(self.settings)),
            "card": self.card,
        }
        return RunLogger(
            self.folder.path,
            self.runtime.is_main,
            self.first_iteration,
            self.state.validated,
            self.settings.max_iterations,
            header,
        )

    def print_start(self) -> None:
        """Print where the run starts from, and how it computes."""
        origin = f"from {self.state.initial_weights}"
        if self.first_iteration:
            origin = f"continues after iteration {self.first_iteration}"
        self.logger.print_line(f"{self.folder.path}: {origin}")
        options = ", ".join(f"{key} {value}" for key, value in self.runtime.describe().items())
        self.logger.print_line(f"{self.environment['device']}: {options}")
        warmup, length = self.settings.warmup_iterations, self.settings.max_iterations
        if warmup >= length:
            self.logger.print_line(f"warning: --warmup-iterations {warmup} do not end within --max-iterations {length}")

    def report_memory(self) -> None:
        """Print how much memory a step will need, and warn where that is more than is free."""
        pixels = self.images_per_rank // self.settings.accumulate * math.prod(self.settings.crop_size)
        if not self.runtime.is_main or pixels < SMALL:
            return
        device = self.runtime.device
        needed = estimate_step_memory(self.step, self.settings, self.runtime)
        if needed is None:
            self.logger.print_line("the memory of a step cannot be estimated for these losses")
            return
        total = sum(needed) / GIB
        copies = count_sharers(device)
        each = f" in each of {copies} processes" if copies > 1 else ""
        how = "counted on tensors without content"
        self.logger.print_line(f"a step needs about {total:.1f} GiB on {device}{each} ({how})")
        free = get_free_memory(device)
        if free is not None and needed.passing * copies > free:  # the weights are in memory already
            advice = "take a smaller --batch-size or --crop-size, or --accumulate"
            self.logger.print_line(f"warning: {free / GIB:.1f} GiB are free, which may be too little: {advice}")

    def load_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Return the batches from the first iteration on that is not done. The loader starts with the first of them."""
        return load_train_batches(
            self.data.train,
            self.first_iteration,
            self.settings.max_iterations,
            self.settings.batch_size,
            self.settings.workers,
            self.runtime,
        )

    def train_all_batches(self) -> None:
        """Train on every batch that is left; log, validate and save where that is due."""
        self.state.set_train_mode()
        torch.backends.cudnn.benchmark = not self.runtime.deterministic  # all crops have one size
        self.progress = Progress(self.state.iteration, self.settings.max_iterations, self.settings.batch_size)
        for image, label in self.batches:
            self.is_mid_step = True
            terms = self.train_step(image, label)
            self.is_mid_step = False
            if not self.skipped_steps:
                self.finite.watch(self.state.iteration - 1, terms)
            self.log_iteration(terms)
            if self.is_validation_due():
                with self.progress.pause():
                    self.validate()
            elif self.state.iteration % self.settings.save_per_iters == 0:
                self.save()

    def train_step(self, image: Tensor, label: Tensor) -> dict[str, Tensor]:
        """Train one iteration on this rank's share of the global batch. In fp16 the update may be skipped.

        Return the terms of the share. The mean of the ranks' terms is the term of the batch.

        Raises:
            UserError: BatchNorm sees a single value per channel.
            LossNotFinite: in fp16, too many steps in a row overflowed.
        """
        state = self.state
        self.set_learning_rate()
        torch.manual_seed(derive_seed(self.settings.seed, DROPOUT_STREAM, state.iteration, self.runtime.rank))
        state.optimizer.zero_grad(set_to_none=True)
        buffers = state.list_buffers_changed_by_forward() if state.scaler.is_enabled() else []
        copies = copy_values(buffers)
        terms = self.backward_in_parts(image, label)
        if self.step_optimizer():
            self.skipped_steps = 0
        else:
            put_back(buffers, copies)  # the forward pass wrote into BatchNorm's statistics and the queues of losses
            self.count_skipped_step(terms)
        state.iteration += 1
        return terms

    def set_learning_rate(self) -> None:
        """Give the optimizer the learning rate of the current iteration."""
        rate = compute_learning_rate(self.settings, self.state.iteration)
        for group in self.state.optimizer.param_groups:
            group["lr"] = rate

    def step_optimizer(self) -> bool:
        """Update the weights. Return False where the update was skipped.

        Only the loss scaler of fp16 skips an update, and lowers its scale: a gradient has overflowed.
        """
        scaler = self.state.scaler
        scale = scaler.get_scale()
        scaler.step(self.state.optimizer)
        scaler.update()
        return scaler.get_scale() >= scale

    def count_skipped_step(self, terms: Mapping[str, Tensor]) -> None:
        """Count an update that was skipped. Its batch is not repeated, and its terms may be inf or NaN.

        Raises:
            LossNotFinite: more than MAX_SKIPPED updates in a row were skipped.
        """
        self.skipped_steps += 1
        if self.skipped_steps <= MAX_SKIPPED:
            return
        values = {name: term.item() for name, term in terms.items()}
        times = f"{self.skipped_steps} times in a row"
        what = f"the gradient is not finite {times} (try --amp bf16, which has a wider range)"
        raise LossNotFinite(self.explain_not_finite(what, self.state.iteration, values))

    def backward_in_parts(self, image: Tensor, label: Tensor) -> dict[str, Tensor]:
        """Compute gradients of this rank's share, one part after another. Return the mean terms.

        Raises:
            UserError: BatchNorm sees a single value per channel.
        """
        parts = self.settings.accumulate
        avg_factor = self.step.task.compute_avg_factor(label) / parts
        self.label_watch.add(avg_factor)
        seed = derive_seed(self.settings.seed, LABEL_NOISE_STREAM, self.state.iteration)
        row = self.runtime.rank * self.images_per_rank
        means: dict[str, Tensor] = {}
        for part, (x, y) in enumerate(zip(image.chunk(parts), label.chunk(parts), strict=True)):
            generator = RowGenerator(seed, row + part * len(x))
            with self.delay_gradient_sync(is_last=part + 1 == parts):
                with self.runtime.autocast():
                    terms = self.forward(x, y, generator, avg_factor)
                self.state.scaler.scale(terms["loss"] / parts).backward()
            for name, term in terms.items():
                means[name] = means.get(name, 0) + term.detach() / parts
        return means

    def delay_gradient_sync(self, is_last: bool) -> AbstractContextManager:
        """Return a context in which DDP averages gradients over ranks only for the last part of a batch."""
        if is_last or self.wrapped is self.step:
            return nullcontext()
        return self.wrapped.no_sync()

    def forward(self, image: Tensor, label: Tensor, generator: RowGenerator, avg_factor: Tensor) -> dict[str, Tensor]:
        """Compute the terms of a part of the batch.

        Raises:
            UserError: BatchNorm sees a single value per channel.
        """
        try:
            return self.wrapped(self.convention.normalize(image), label.long(), generator, avg_factor)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UserError(
                f"BatchNorm sees one value per channel: this network or a loss pools to a 1x1 map, which needs at "
                f"least 2 images a process at a time (here {len(image)}): raise --batch-size, lower --accumulate, "
                f"start fewer processes, or --freeze-bn where the whole network was trained before (--pretrained)"
            ) from error

    def is_log_due(self) -> bool:
        """Return whether the iteration just done is logged: the first, the last, and every ``log_iter``-th."""
        done = self.state.iteration
        return done % self.settings.log_iter == 0 or done in (1, self.settings.max_iterations)

    def is_validation_due(self) -> bool:
        """Return whether a validation belongs to the iteration just done."""
        done = self.state.iteration
        if done == self.settings.max_iterations:
            return True
        return done > 0 and done % self.settings.val_per_iters == 0 and not self.settings.skip_val

    def log_iteration(self, terms: Mapping[str, Tensor]) -> None:
        """Log the iteration just done, where that is due, and move the bar.

        A failure ends the run before the next batch, on all ranks together, so that the work so far can be saved.
        """
        try:
            self.progress.note_iteration(self.state.iteration)
            if self.is_log_due():
                self.log_terms(terms)
                warning = self.label_watch.check(self.state.iteration)
                if warning is not None:
                    self.logger.print_line(f"warning: {warning}")
            self.print_expected_end()
            self.logger.advance(self.state.iteration)
        except (OSError, UserError) as error:  # the disk is full, nothing reads the output, or no label has a class
            self.batches.stop_all_ranks(error)

    def log_terms(self, terms: Mapping[str, Tensor]) -> None:
        """Log the terms of the iteration just done, averaged over the ranks."""
        done = self.state.iteration
        values = all_reduce(torch.stack([term.float() for term in terms.values()]), "mean").tolist()
        means = dict(zip(terms, map(make_json_number, values), strict=True))  # None for what is not finite
        means["lr"] = compute_learning_rate(self.settings, done - 1)
        speed = self.progress.measure_interval(done)  # now that a GPU has done all of it
        self.logger.log_training(means, speed, self.progress.estimate_seconds_left(done), done)
        self.progress.start_interval(done)

    def print_expected_end(self) -> None:
        """Print once when the run is expected to end, early in the run.

        That is after an iteration that is logged, when a GPU has surely done its work, or after LONGEST_WAIT seconds.
        """
        if self.has_printed_end:
            return
        done = self.state.iteration
        seconds = self.progress.estimate_seconds_left(done)
        if seconds is None:
            return
        if self.is_log_due() or self.progress.get_seconds_since_first() >= LONGEST_WAIT:
            self.has_printed_end = True
            if done < self.settings.max_iterations:
                self.logger.print_line(describe_finish(seconds, self.runtime.device.type == "cpu"))

    def validate(self) -> None:
        """Write ``last.pth``, score the network, and write ``best.pth`` if the score is the best so far.

        The label noise has the default seed of ``evaluate``, which is also that of eval.py. So all runs see the same
        noise. A validation that fails or is stopped is done again on resume.

        Raises:
            UserError: an image cannot be read or is too large for the memory, or a checkpoint cannot be written.
            Stopped: a signal asked to stop.
        """
        if self.saved_iteration < self.state.iteration:
            self.save()
        self.metrics = evaluate(
            self.predictor,
            self.data.val,
            self.card["num_classes"],
            self.runtime,
            self.settings.workers,
            should_stop=self.stop_request,
        )
        miou = make_json_number(self.metrics.miou())
        self.log_scores(miou)
        self.state.validated = self.state.iteration
        if miou is not None and (self.state.best_miou is None or miou > self.state.best_miou):
            self.state.best_miou = miou
            self.state.best_iteration = self.state.iteration
            self.save(BEST)
        with switch_to_eval(self.step.model):
            self.runtime.on_rank0(self.log_preview)
        self.state.set_train_mode()

    def log_scores(self, miou: float | None) -> None:
        """Log the scores of a validation."""
        iteration = self.state.iteration
        if miou is None:
            reason = f"no pixel of the validation labels has a class: {COUNT_PIXELS}"
            self.logger.print_line(f"warning: no score, no {BEST}: {reason}")
        accuracy = make_json_number(self.metrics.pixel_accuracy)
        self.logger.log_scores({"miou": miou, "pixel_accuracy": accuracy}, iteration)
        per_class = {}
        for name, iou in zip(self.card["class_names"], self.metrics.iou.tolist(), strict=True):
            per_class[f"iou/{name}"] = make_json_number(iou)
        self.logger.write_record({"event": "val_iou", "iteration": iteration, **per_class})

    def log_preview(self) -> None:
        """Show predictions of a few validation images in TensorBoard."""
        picture = make_preview(self.predictor, self.data.val, self.card["palette"])
        self.logger.log_prediction(picture, self.state.iteration)

    def save(self, name: str = LAST) -> None:
        """Write a checkpoint. Every rank takes part, and takes over rank 0's running statistics and buffers.

        Raises:
            LossNotFinite: the last loss or a value to be saved is not finite.
            UserError: the file cannot be written, or what the run had written is gone; on every rank.
        """
        self.finite.check(self.state.list_tensors_to_check())
        broadcast_values(self.state.list_buffers_changed_by_forward())
        keep_previous = name == LAST and self.saved_iteration != self.state.iteration
        self.runtime.on_rank0(self.write_checkpoint, name, keep_previous)
        if name == LAST:
            self.saved_iteration = self.state.iteration

    def write_checkpoint(self, name: str, keep_previous: bool) -> None:
        """Collect what a checkpoint holds and write it, on rank 0."""
        content = self.make_checkpoint_content(name)
        self.folder.write_checkpoint(name, content, keep_previous)

    def make_checkpoint_content(self, name: str) -> dict[str, Any]:
        """Return what a checkpoint holds; only ``last.pth`` has what a resume needs."""
        content = {
            **self.card,
            **self.state.get_progress(),
            "config": make_plain(asdict(self.settings)),
            "inputs": dict(self.folder.inputs),
            "world_size": self.runtime.size,
            "model": self.state.get_model_weights(),
        }
        if name == LAST:
            content |= self.state.get_resume_entries()
        return content

    def save_after_signal(self) -> None:
        """Save after all ranks have stopped together, and have the launcher end too."""
        try:
            if self.saved_iteration < self.state.iteration:
                self.save()
        finally:
            self.stop_request.end_agent()
        self.runtime.barrier()
        done = self.state.iteration
        self.logger.print_line(f"stopped by a signal after iteration {done}; --resume auto continues")

    def save_after_failure(self) -> None:
        """Save the work so far, where all of it belongs to one iteration."""
        if self.saved_iteration < self.state.iteration and self.has_consistent_state():
            self.save()

    def has_consistent_state(self) -> bool:
        """Return whether all ranks have finished the same iteration, after a failure.

        They have if they stopped together between two batches. Of a failure inside a step, or of one that the other
        ranks do not know of, only a single process can say where it stands.
        """
        return self.batches.all_ranks_stopped or (self.runtime.size == 1 and not self.is_mid_step)

    def explain_not_finite(self, what: str, iteration: int, terms: Mapping[str, float]) -> str:
        """Return the message for a loss or gradient that is not finite, with the images of this rank's share."""
        first = iteration * self.settings.batch_size + self.runtime.rank * self.images_per_rank
        positions = range(first, first + self.images_per_rank)
        files = ", ".join(str(self.data.train.get_image_path(position)) for position in positions)
        values = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
        advice = "look at the images and labels of this step, or start anew with a lower --lr"
        kept = f"{self.folder.path} keeps the earlier checkpoints"
        return f"{what} at iteration {iteration + 1} ({values}): {advice}; {kept}; images: {files}"


def make_card(state: TrainingState, data: Data, settings: TrainConfig) -> dict[str, Any]:
    """Describe the network for its checkpoints, so that eval.py can rebuild it."""
    noise = state.step.label_noise
    card = Card(
        arch=dict(state.step.model.config),
        class_names=data.spec.names,
        palette=data.spec.palette,
        dataset=settings.dataset,
        data=settings.data,
        pixels=settings.pixels,
        label_noise=dict(noise.config) if noise is not None else None,
        start=state.initial_weights,
    )
    return card.entries()
