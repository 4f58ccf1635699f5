"""Put the small files of finished runs into the record file of their experiment.

    python scripts/study/pack_records.py runs/camvid_lite/lad-0 --records results/camvid_lite.zip
    python scripts/study/pack_records.py runs/camvid_lite/* --records results/camvid_lite.zip

Kept are settings, training log, scores, per-image counts, robustness and knowledge; no weights. A run that
experiment.py has not finished is passed over. Done again, the command changes only what has changed: the file keeps
its bytes otherwise. Folders of records without weights are taken as well. compare.py and results_table.py read the
file.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.environment import require_packages

require_packages()

from scripts.study.analysis.record_files import is_finished, pack_runs
from utils.entry import run_main
from utils.errors import UserError
from utils.options import option, parse_flags


@dataclass(frozen=True)
class PackConfig:
    """Hold the settings of pack_records.py."""

    runs: tuple[str, ...] = option((), "folders of finished runs", positional=True)
    records: str = option("", "the record file to add them to, results/NAME.zip")


def main(argv: Sequence[str] | None = None) -> None:
    config = PackConfig(**parse_flags(PackConfig, __doc__, argv))
    runs = [Path(os.path.abspath(Path(run).expanduser())) for run in config.runs]  # "." has a name, too
    if not runs:
        raise UserError("no runs given: pack_records.py RUN.. --records results/NAME.zip")
    archive = check_record_file(config.records)
    finished = [run for run in runs if is_finished(run)]
    for run in runs:
        if run not in finished:
            print(f"{run.name}: not finished, passed over")
    changed = pack_runs(archive, finished)
    print(f"{archive}: {len(changed)} of {len(finished)} finished runs are new or changed: {', '.join(changed) or '-'}")


def check_record_file(name: str) -> Path:
    """Return the path of a record file.

    Raises:
        UserError: the name is empty, or does not end in .zip.
    """
    if not name.endswith(".zip"):
        raise UserError(f"--records {name or 'FILE is missing'}: a record file is called NAME.zip")
    return Path(name).expanduser()


if __name__ == "__main__":
    run_main(main)
