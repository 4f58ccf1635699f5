"""Compute digests of short runs, to check that a change of the code changes no number.

    python tests/frozen_runs.py write before.json
    (change the code)
    python tests/frozen_runs.py check before.json

A digest covers the weights, the optimizer state, the state of the losses, and the logged losses and scores. It depends
on the processor and on the versions of the libraries, so compare only files that were written on the same machine.
Give names of cases after the file to run only those.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
TINY = (
    "--dataset toy --model fcn --backbone resnet10t --crop-size 32 32 --batch-size 4 --workers 1 --device cpu "
    "--lr 0.01 --log-iter 1 --val-per-iters 2 --save-per-iters 1 --max-iterations 3 --save-dir {folder}"
)
TEACHER = "--teacher-pretrained {teacher}/last.pth"
EVERY_LOSS = (
    "kd=1,cwd=1,dist=1,at=1000,fitnet=1,nfd=1,cwd_feat=1,skd=1,ifvd=1,dsd=0.1,adv=0.001,mgd=0.00002,af_dcd=1,cirkd=1,"
    "cirkd_pixel=1:size=9,cirkd_region=1:size=5,cirkd2=1:pixel_size=9:region_size=5:channel_size=7"
)
LIGHT = "--model stdc --backbone tf_efficientnet_lite0 --optimizer adamw --lr 0.001 --crop-size 64 64"
MACHINE = ("images_per_second", "cpu_seconds", "memory_gb")


class Case(NamedTuple):
    """A run of which to compute the digest.

    ``flags`` may contain ``{folder}``, the folder of the run, and ``{teacher}``, the folder of the case ``teacher``.
    If ``killed`` is set, the run is killed after its first checkpoint and then continued.
    """

    script: str
    flags: str
    processes: int = 1
    killed: bool = False


CASES = {
    "teacher": Case("train_teacher.py", TINY),
    "student": Case("train_student.py", f"{TINY} {TEACHER} --kd cwd=3,kd=1"),
    "baseline": Case("train_student.py", f"{TINY} --kd none --task-loss ce+dice --augmentation mmseg"),
    "every_loss": Case("train_student.py", f"{TINY} {TEACHER} --kd {EVERY_LOSS}"),
    "light": Case("train_teacher.py", f"{TINY} {LIGHT}"),
    "label_dropout": Case(
        "train_teacher.py", f"{TINY} --model smp_fpn --backbone tf_efficientnet_lite0 --label-dropout 0.5"
    ),
    "two_processes_teacher": Case("train_teacher.py", TINY, processes=2),
    "two_processes_student": Case("train_student.py", f"{TINY} {TEACHER} --kd {EVERY_LOSS}", processes=2),
    "accumulate": Case("train_teacher.py", f"{TINY} --model deeplabv3 --accumulate 2"),
    "freeze_bn": Case("train_teacher.py", f"{TINY} --freeze-bn"),
    "bf16": Case("train_teacher.py", f"{TINY} --amp bf16 --warmup-iterations 2"),
    "killed": Case("train_student.py", f"{TINY} {TEACHER} --kd {EVERY_LOSS} --resume auto", killed=True),
    "evaluation": Case(
        "eval.py",
        "--pretrained {teacher}/last.pth --device cpu --scales 0.75 1.0 --flip --window 64 64 "
        "--json {folder}/score.json --per-image {folder}/areas.npz",
    ),
    "evaluation_two_processes": Case(
        "eval.py",
        "--pretrained {teacher}/last.pth --device cpu --resize 160 96 --draws 2 --json {folder}/score.json",
        processes=2,
    ),
}


def run_case(case: Case, folder: Path, teacher: Path) -> str:
    """Run a case and return the digest of what it wrote. The folder must be empty."""
    flags = case.flags.format(folder=folder, teacher=teacher).split()
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(case.processes)]
    line = [sys.executable, *(launcher if case.processes > 1 else []), case.script, *flags]
    folder.mkdir(parents=True)
    if case.killed:
        kill_after_first_checkpoint(line, folder)
    result = subprocess.run(line, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"{' '.join(line)}\n{result.stderr}")
    return digest_folder(folder)


def kill_after_first_checkpoint(line: Sequence[str], folder: Path) -> None:
    """Start a run and send it SIGKILL as soon as it has saved a checkpoint."""
    process = subprocess.Popen(line, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, start_new_session=True)
    while not (folder / "last.pth").exists() and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.wait()


def digest_folder(folder: Path) -> str:
    """Return the digest of a run's checkpoints and log, or of the scores that eval.py wrote."""
    digest = hashlib.sha256()
    for name in ("last.pth", "best.pth"):
        if (folder / name).exists():
            content = torch.load(folder / name, weights_only=True)
            for key in ("model", "optimizer", "scaler", "losses", "iteration", "validated", "best_miou"):
                add_value(digest, content.get(key))
    if (folder / "metrics.jsonl").exists():
        for line in (folder / "metrics.jsonl").read_text().splitlines():
            record = json.loads(line)
            if record["event"] in ("train", "val", "val_iou"):
                add_value(digest, {key: value for key, value in record.items() if key not in MACHINE})
    if (folder / "score.json").exists():
        score = json.loads((folder / "score.json").read_text())
        del score["checkpoint"]
        add_value(digest, score)
    return digest.hexdigest()


def add_value(digest: Any, value: Any) -> None:
    """Add tensors, numbers and texts in nested dicts and lists to a digest."""
    if isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype} {list(value.shape)}".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            digest.update(repr(key).encode())
            add_value(digest, value[key])
    elif isinstance(value, (list, tuple)):
        digest.update(f"{len(value)} values".encode())
        for item in value:
            add_value(digest, item)
    else:
        digest.update(repr(value).encode())


def run_cases(names: Sequence[str], folder: Path) -> dict[str, str]:
    """Run the named cases and return their digests. ``teacher`` always runs first, because others need it."""
    digests = {}
    for name in ["teacher", *(name for name in names if name != "teacher")]:
        start_time = time.monotonic()
        digests[name] = run_case(CASES[name], folder / name, folder / "teacher")
        print(f"{name}: {digests[name][:16]} ({time.monotonic() - start_time:.0f} s)", flush=True)
    return digests


def main() -> None:
    action, file, *names = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        digests = run_cases(names or list(CASES), Path(folder))
    if action == "write":
        Path(file).write_text(json.dumps(digests, indent=1) + "\n")
        return
    expected = json.loads(Path(file).read_text())
    changed = [name for name, digest in digests.items() if name in expected and expected[name] != digest]
    if changed:
        raise SystemExit(f"changed: {', '.join(changed)}")
    print(f"the same: {', '.join(name for name in digests if name in expected)}")


if __name__ == "__main__":
    main()
