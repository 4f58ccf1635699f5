"""What a run prints and logs: its progress, the time left, and whether a score is label-assisted."""

import json
import re

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine.logger import RunLogger


def write_log(folder, card):
    """Log a run of 40,000 iterations resumed at 20. Return its records and the names of its TensorBoard scalars."""
    logger = RunLogger(folder, True, 20, 20, 40_000, {"card": card})
    speed = {"images_per_second": 8.0, "cpu_seconds": 0.5}
    logger.log_training({"loss": 1.5}, speed, None, 21)
    logger.log_training({"loss": 1.5}, speed, 3723.4, 30)
    logger.log_scores({"miou": 0.25}, 40)
    logger.close()
    events = EventAccumulator(str(folder)).Reload()
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()], events.Tags()["scalars"]


@pytest.mark.parametrize("card", [{}, {"label_noise": None}, {"label_noise": {"codes": "random"}}])
def test_progress_memory_and_assisted_scores_are_logged(tmp_path, capsys, card):
    records, tags = write_log(tmp_path, card)
    first, train, val = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"train 21/40000: loss 1\.5 \| 8\.0 images/s, \d+\.\d GB", first)
    assert re.fullmatch(r"train 30/40000: loss 1\.5 \| 8\.0 images/s, 1:02:03 left, \d+\.\d GB", train)
    is_assisted = bool(card.get("label_noise"))
    assert val == ("val 40/40000: LABEL-ASSISTED miou 0.25" if is_assisted else "val 40/40000: miou 0.25")
    assert ("val_LABEL-ASSISTED/miou" if is_assisted else "val/miou") in tags
    assert records[2].keys() == {"event", "iteration", "loss", "images_per_second", "cpu_seconds", "memory_gb"}
    assert 0.05 < records[2]["memory_gb"] < 100
    assert records[3] == {"event": "val", "iteration": 40, "miou": 0.25} | (
        {"label_assisted": True} if is_assisted else {}
    )
