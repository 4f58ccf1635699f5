"""Training on several processes of one host, against one process that has the same share of a batch."""

import os
import socket
import statistics
from multiprocessing.queues import SimpleQueue
from time import perf_counter

import torch
import torch.multiprocessing as mp

from engine.runtime import start_runtime
from scripts.study.benchmarks.steps import Batch, step, teacher_step
from scripts.study.benchmarks.timing import BenchmarkConfig, Comparison


def scaling(config: BenchmarkConfig, device: torch.device) -> Comparison:
    """Seconds an image of the teacher step: every process has a whole batch, so that n processes should take 1 / n.

    On GPUs one process each; on a CPU, one core each. Time of the day: waiting for each other is what is measured.
    """
    most = torch.cuda.device_count() if device.type == "cuda" else len(os.sched_getaffinity(0))
    counts = sorted({1, 2, most} - ({2} if most < 2 else set()))
    what = Batch(21, device).what
    context, seconds, losses = mp.get_context("spawn"), {}, {}
    for size in counts:
        results = context.SimpleQueue()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        mp.spawn(_work, (size, port, config, results), size)
        seconds[f"{size} process{'es' if size > 1 else ''}"], losses[size] = results.get()
    check = {f"loss of {size}": loss for size, loss in losses.items()}
    return Comparison(f"teacher step, {what} a process, each image", seconds, check)


def _work(rank: int, size: int, port: int, config: BenchmarkConfig, results: SimpleQueue) -> None:
    values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port, "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {key: str(value) for key, value in values.items()}
    torch.set_num_threads(1)
    with start_runtime(config) as runtime:
        batch = Batch(21, runtime.device)
        wrapped = runtime.prepare(teacher_step(21)).train()
        run, times = step(batch.loss(wrapped, runtime), wrapped, fused=True), []
        for i in range(1 + config.rounds):
            runtime.barrier()
            before = perf_counter()
            loss = run(i).item()  # waits for the device
            runtime.barrier()
            times.append(perf_counter() - before)
        if runtime.is_main:
            results.put((statistics.median(times[1:]) / (size * len(batch.image)), loss))
