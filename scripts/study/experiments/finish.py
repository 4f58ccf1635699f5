"""Note that a run submitted to SLURM is done: the last step of its job.

python scripts/study/experiments/finish.py runs/camvid_lite/lad-0
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from utils.environment import require_packages

require_packages()

from scripts.study.experiments.slurm import finish_run
from utils.entry import run_main
from utils.errors import UserError


def main() -> None:
    if len(sys.argv) != 2:
        raise UserError("name the folder of one run: finish.py RUN")
    finish_run(Path(sys.argv[1]))


if __name__ == "__main__":
    run_main(main)
