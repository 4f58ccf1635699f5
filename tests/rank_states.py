"""Run train_student.py under torchrun and save the state dict of each rank's step in --save-dir/rank<N>.pth."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import train_student
from utils.entry import run_main

train = train_student.train


def train_and_save_state(step, *args):
    result = train(step, *args)
    folder = Path(sys.argv[sys.argv.index("--save-dir") + 1])
    torch.save(step.state_dict(), folder / f"rank{os.environ['RANK']}.pth")
    return result


train_student.train = train_and_save_state
run_main(train_student.main)
