"""Run torchrun, but end with the status of the process that failed first, and print no report of the failure.

    python scripts/torchrun.py --standalone --nproc-per-node 2 train_teacher.py --recipe toy

torchrun itself ends with status 1 after every failure, and its report hides the one line that says what was wrong. Here
the status is 2 after such a line, and 3 for a run that saved itself when a signal stopped it. SIGTERM, SIGINT, SIGHUP,
SIGQUIT and SIGUSR1 are passed on to the processes.
"""

import logging
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.environment import require_packages

require_packages()

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from engine.lockstep import STOPPED_STATUS


def main() -> int:
    """Launch the processes and wait for them. Return the exit status: 128 + the signal if one ended a process."""
    # torchrun's own default, set here because torchrun prints a long warning when it sets it
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # a torchrun that has the flag --signals-to-handle takes its default from PET_..., an older one reads the other
    for name in ("TORCHELASTIC_SIGNALS_TO_HANDLE", "PET_SIGNALS_TO_HANDLE"):
        os.environ.setdefault(name, "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1")
    logging.disable()  # silences torchrun's agent in this process; the launched processes log for themselves
    settings = parse_args(None)
    if not settings.standalone:
        # otherwise processes that are restarted on several hosts would find the addresses of those that have ended
        os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    try:
        run(settings)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        if failure.exitcode > 0:
            return failure.exitcode
        number = -failure.exitcode  # of the signal that ended the process
        if number > 0:
            print(f"error: a process was ended by {name_signal(number)}", file=sys.stderr)
        return 128 + number
    except SignalException:
        return STOPPED_STATUS
    return 0


def name_signal(number: int) -> str:
    """Return the name of a signal, such as SIGKILL. Most real-time signals have none and are named by their number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


if __name__ == "__main__":
    sys.exit(main())
