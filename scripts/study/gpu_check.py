"""Check this project on a GPU, once: tests, training against the CPU, speed and memory.

    bash scripts/gpu_check.sh                   # all of it
    bash scripts/gpu_check.sh training          # one part: tests, training or benchmark

Training runs a teacher and a student on the built-in data, on the GPU and on the CPU: in float32 and without random
numbers of the device (label noise, dropout), so that the first losses are equal to rounding. The result is one JSON
file, and rows for the table of docs/speed.md. The status is 1 where something failed or does not agree.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from utils.environment import require_packages

require_packages()

import torch

from engine.machine import describe_environment
from scripts.study.analysis.text import format_markdown_table
from utils.entry import run_main
from utils.errors import UserError, require_known
from utils.files import read_bytes, write_text
from utils.options import option, parse_flags

COMPARISONS = ("teacher-21", "student-21")
WAYS = (("none", False), ("bf16", False), ("bf16", True), ("none", True))  # --amp, --compile: what compiles comes last
TRAINING = [
    *("--dataset", "toy", "--model", "deeplabv3", "--backbone", "resnet18", "--crop-size", "96", "96"),
    *("--batch-size", "8", "--lr", "0.01", "--log-iter", "1", "--skip-val", "--overwrite", "--seed", "0"),
    *("--no-tf32", "--dropout", "0", "--label-codes", "fixed", "--label-std", "0"),
]
STUDENT = ["--kd", "kd=1,cwd=3"]
FIRST = 1e-3  # relative difference of the first losses that rounding explains
LATER = 0.1  # of the mean loss of the last quarter: by then rounding has grown
OUT_OF_TIME = "not run: the time is used up (--minutes)"


@dataclass(frozen=True)
class GpuCheckConfig:
    """Hold the settings of gpu_check.py."""

    parts: tuple[str, ...] = option((), "parts to run: tests, training, benchmark (default: all)", positional=True)
    device: str = option("cuda", "cpu tries the check itself", choices=("cuda", "cpu"))
    iterations: int = option(60, "of each training run", minimum=4)
    rounds: int = option(5, "alternating rounds of each step of the benchmark", minimum=3)
    minutes: float = option(30.0, "time for all parts; what does not fit is left out, and said", minimum=0)
    folder: str = option("runs/gpu_check", "where training runs and the output of commands go")
    json: str = option("", "file for the result (default: gpu_check.json in the folder)")


@dataclass(frozen=True)
class Outcome:
    """Hold the last line that a command printed, and its error, or ""."""

    last_line: str
    error: str = ""


class Check:
    """Run the parts of the check, one after another, until the time is used up."""

    def __init__(self, config: GpuCheckConfig) -> None:
        self.config = config
        self.folder = Path(config.folder).expanduser()
        self.end = time.monotonic() + 60 * config.minutes

    def run_python(self, name: str, *arguments: str | Path) -> Outcome:
        """Run a Python program in the repository. Its output goes to ``<name>.txt`` in the folder."""
        seconds = self.end - time.monotonic()
        if seconds <= 0:
            return Outcome("", OUT_OF_TIME)
        print(f"{name} ...", flush=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{name}.txt"
        command = [sys.executable, *map(str, arguments)]
        with path.open("w", encoding="utf-8") as output:
            try:
                done = subprocess.run(
                    command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, timeout=seconds, check=False
                )
            except subprocess.TimeoutExpired:
                return Outcome("", "stopped: the time is used up (--minutes)")
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        last_line = next((line for line in reversed(lines) if line.strip()), "")
        if done.returncode:
            return Outcome(last_line, f"status {done.returncode}: {last_line} (all of it: {path})")
        return Outcome(last_line)

    def run_tests(self) -> dict[str, Any]:
        """Run the tests that need a GPU."""
        outcome = self.run_python("tests", "-m", "pytest", "tests/test_cuda.py")
        return asdict(outcome)

    def run_training(self) -> dict[str, Any]:
        """Train a teacher and a student on the CPU and on the device, and compare their losses.

        Both students learn from the CPU's teacher: what differs is the device alone.
        """
        teacher = self.compare_devices("teacher", [])
        if teacher["error"]:
            return {"teacher": teacher}
        weights = self.folder.resolve() / "teacher-cpu" / "last.pth"
        student = self.compare_devices("student", [*STUDENT, "--teacher-pretrained", str(weights)])
        return {"teacher": teacher, "student": student}

    def compare_devices(self, role: str, flags: Sequence[str]) -> dict[str, Any]:
        """Train on the CPU and on the device. Return how the losses differ, or the error."""
        records = {}
        for place, device in (("cpu", "cpu"), ("device", self.config.device)):
            name = f"{role}-{place}"
            run = self.folder.resolve() / name
            length = ["--max-iterations", str(self.config.iterations)]
            where = ["--device", device, "--save-dir", str(run)]
            outcome = self.run_python(name, f"train_{role}.py", *TRAINING, *flags, *length, *where)
            if outcome.error:
                return {"error": f"{name}: {outcome.error}"}
            records[place] = read_training_records(run / "metrics.jsonl")
        return compare_records(records["cpu"], records["device"])

    def run_benchmark(self) -> list[dict[str, Any]]:
        """Time a step of teacher and student in every way of WAYS."""
        results = []
        for amp, is_compiled in WAYS:
            name = f"benchmark-{amp}-compiled" if is_compiled else f"benchmark-{amp}"
            path = self.folder.resolve() / f"{name}.json"
            flags = ["--device", self.config.device, "--amp", amp, "--rounds", str(self.config.rounds)]
            if is_compiled:
                flags.append("--compile")
            outcome = self.run_python(name, "scripts/study/benchmark.py", *COMPARISONS, *flags, "--json", path)
            result = {"amp": amp, "compile": is_compiled, "error": outcome.error}
            if not outcome.error:
                result |= {"comparisons": json.loads(read_bytes(path))}
            results.append(result)
        return results


PARTS = {"tests": Check.run_tests, "training": Check.run_training, "benchmark": Check.run_benchmark}


def read_training_records(path: Path) -> list[dict[str, Any]]:
    """Return the training records of a run, in order."""
    records = [json.loads(line) for line in read_bytes(path).decode().splitlines()]
    return [record for record in records if record["event"] == "train"]


def compare_records(cpu: Sequence[Mapping[str, Any]], device: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Compare the losses of two runs that differ in the device alone."""
    quarter = max(1, len(cpu) // 4)
    losses = {"cpu": [record["loss"] for record in cpu], "device": [record["loss"] for record in device]}
    first = {place: values[0] for place, values in losses.items()}
    later = {place: mean(values[-quarter:]) for place, values in losses.items()}
    differences = {"first": compute_relative_difference(first), "last_quarter": compute_relative_difference(later)}
    wrong = ""
    if len(cpu) != len(device):
        wrong = f"{len(cpu)} records of the CPU, {len(device)} of the device"
    elif not differences["first"] <= FIRST:
        wrong = f"the first losses differ by {differences['first']:.2g}, more than {FIRST:g}"
    elif not differences["last_quarter"] <= LATER:
        wrong = f"the mean losses of the last quarter differ by {differences['last_quarter']:.2g}, more than {LATER:g}"
    return {
        "error": wrong,
        "iterations": cpu[-1]["iteration"],
        "first_loss": first,
        "mean_loss_of_last_quarter": later,
        "relative_difference": differences,
        "images_per_second": {"cpu": cpu[-1]["images_per_second"], "device": device[-1]["images_per_second"]},
        "peak_memory_gb": {"cpu": cpu[-1]["memory_gb"], "device": device[-1]["memory_gb"]},
    }


def compute_relative_difference(values: Mapping[str, float]) -> float:
    """Return by how much the device's value is off, as a share of the CPU's."""
    return abs(values["device"] - values["cpu"]) / abs(values["cpu"])


def list_failures(result: Mapping[str, Any]) -> Iterator[str]:
    """Return what failed, did not agree or was not run: a line each."""
    error_of_tests = result.get("tests", {}).get("error")
    if error_of_tests:
        yield f"tests: {error_of_tests}"
    for role, entry in result.get("training", {}).items():
        if entry["error"]:
            yield f"training, {role}: {entry['error']}"
    for entry in result.get("benchmark", ()):
        if entry["error"]:
            yield f"benchmark, {describe_way(entry)}: {entry['error']}"


def describe_way(entry: Mapping[str, Any]) -> str:
    """Return the precision of a step, and whether it is compiled."""
    precision = "float32" if entry["amp"] == "none" else entry["amp"]
    return f"{precision}, compiled" if entry["compile"] else precision


def make_speed_rows(benchmark: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return rows of the table of speed: time and memory of each step, as released and ours."""
    rows = []
    for entry in benchmark:
        for name in COMPARISONS:
            comparison = entry.get("comparisons", {}).get(name)
            if comparison is None:
                continue
            what = f"{comparison['what']}, {describe_way(entry)}"
            number = str(comparison["num_classes"])
            plain, ours = comparison["seconds"].values()
            rows.append([what, number, f"{1000 * plain:.1f} ms", f"{1000 * ours:.1f} ms", f"{plain / ours:.2f}x"])
            if comparison["peak_mib"]:
                plain, ours = comparison["peak_mib"].values()
                row = [f"most memory of it besides weights, {describe_way(entry)}", number]
                rows.append([*row, f"{plain:.0f} MiB", f"{ours:.0f} MiB", f"{ours / plain:.2f}"])
    return rows


def make_training_rows(training: Mapping[str, Any]) -> list[list[str]]:
    """Return rows that compare training on the device with training on the CPU."""
    rows = []
    for role, entry in training.items():
        if "first_loss" not in entry:
            continue
        first = entry["first_loss"]
        later = entry["mean_loss_of_last_quarter"]
        rows.append(
            [
                f"{role}, {entry['iterations']} iterations",
                f"{first['cpu']:.6f}",
                f"{first['device']:.6f}",
                f"{later['cpu']:.4f}",
                f"{later['device']:.4f}",
                f"{entry['images_per_second']['device']:.0f}",
                f"{entry['peak_memory_gb']['device']:.2f} GB",
            ]
        )
    return rows


def describe_result(result: Mapping[str, Any]) -> str:
    """Return the tables, and the end of the tests."""
    environment = result["environment"]
    parts = [f"{environment['device']}, PyTorch {environment['torch']}, {environment['git']}"]
    if result.get("tests", {}).get("last_line"):
        parts.append(f"tests/test_cuda.py: {result['tests']['last_line']}")
    training_rows = make_training_rows(result.get("training", {}))
    if training_rows:
        titles = ["first loss, CPU", "here", "mean of the last quarter, CPU", "here", "images/s", "most memory"]
        parts.append(format_markdown_table(["", *titles], training_rows))
    speed_rows = make_speed_rows(result.get("benchmark", ()))
    if speed_rows:
        parts.append(format_markdown_table(["", "classes", "as released", "ours", "ratio"], speed_rows))
    return "\n\n".join(parts)


def main(argv: Sequence[str] | None = None) -> None:
    config = GpuCheckConfig(**parse_flags(GpuCheckConfig, __doc__, argv))
    for name in config.parts:
        require_known(name, PARTS, "part")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("this check needs a GPU, and torch finds none; --device cpu tries the check itself")
    check = Check(config)
    path = Path(config.json or check.folder / "gpu_check.json")
    result: dict[str, Any] = {"environment": describe_environment(torch.device(config.device))}
    start = time.monotonic()
    for name, run in PARTS.items():
        if name in config.parts or not config.parts:
            result[name] = run(check)
            result["seconds"] = round(time.monotonic() - start, 1)
            result["failures"] = list(list_failures(result))
            write_text(path, json.dumps(result, indent=1) + "\n")  # after each part: what was measured is kept
    print(f"\n{describe_result(result)}\n\nwrote {path} after {result['seconds']:.0f} s")
    for failure in result["failures"]:
        print(f"failed: {failure}", file=sys.stderr)
    if result["failures"]:
        sys.exit(1)


if __name__ == "__main__":
    run_main(main)
