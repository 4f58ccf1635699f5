"""Run train_student.py and leave what each process holds at its end, in --save-dir/rank<N>.pth. For torchrun."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import train_student
from engine import script as training

fit = training.fit


def fit_and_keep(step, *args, **kwargs):
    result = fit(step, *args, **kwargs)
    folder = Path(sys.argv[sys.argv.index("--save-dir") + 1])
    torch.save(step.state_dict(), folder / f"rank{os.environ['RANK']}.pth")
    return result


training.fit = fit_and_keep
train_student.main()
