"""torchrun, but for its last words: it ends with the status of the process that failed first, and adds nothing to it.

    python scripts/torchrun.py --standalone --nproc-per-node 2 train_teacher.py --recipe toy

torchrun's own status is always 1, and its report hides the one line that says what was wrong. Here it is 2 after such a
line, 3 for a run that a signal stopped after it saved itself. SIGTERM, SIGINT, SIGHUP and SIGUSR1 are passed on.
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
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun has it, which says so at length
    for name in ("TORCHELASTIC_SIGNALS_TO_HANDLE", "PET_SIGNALS_TO_HANDLE"):  # where torchrun has its flag, that counts
        os.environ.setdefault(name, "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1")
    logging.disable()  # of the agent; the processes log for themselves
    settings = parse_args(None)
    if not settings.standalone:  # processes that are restarted on several hosts would find the addresses of the ended
        os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    try:
        run(settings)
    except ChildFailedError as error:
        status = error.get_first_failure()[1].exitcode
        if status < 0:
            print(f"error: a process was ended by {signal.Signals(-status).name}", file=sys.stderr)
        return status if status > 0 else 128 - status
    except SignalException:
        return STOPPED_STATUS
    return 0


if __name__ == "__main__":
    sys.exit(main())
