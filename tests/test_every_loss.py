"""Train with all losses at once. Ranks hold the same state, and a stopped run continues to the same bits."""

import pytest
import torch

import train_student
from losses import LOSSES
from tests.conftest import TINY
from tests.networks import write_checkpoint
from tests.test_engine import assert_equal, assert_same_checkpoints, crash_at, read_losses, read_records
from tests.test_feature_losses import SMALL
from utils import checkpoint

WEIGHTS = {"at": 1000, "adv": 0.001, "mgd": 0.00002, "dsd": 0.1}  # so that no loss outweighs the others
KD = ",".join(f"{name}={WEIGHTS.get(name, 1)}{SMALL.get(name, '')}" for name in LOSSES)


@pytest.mark.slow
def test_two_ranks_hold_the_same_state_and_continue_to_the_same_bits(command, tmp_path):
    flags = [*TINY, "--max-iterations", "3", "--skip-val", "--kd", KD, "--save-dir", tmp_path, "--resume", "auto"]
    flags += ["--teacher-pretrained", write_checkpoint(tmp_path / "assisted.pth", codes="random")]

    def train_on_two_ranks():
        """Train on two ranks and return the state of each."""
        command("tests/rank_states.py", *flags, processes=2)
        return [torch.load(tmp_path / f"rank{rank}.pth", weights_only=True) for rank in range(2)]

    one, two = train_on_two_ranks()
    assert any(key.endswith("adv._extra_state") for key in one)
    assert_equal(one, two)
    (tmp_path / "last.pth").unlink()  # the run continues from previous.pth, which is of iteration 2
    resumed = train_on_two_ranks()
    assert_equal(one, resumed[0])
    assert_equal(one, resumed[1])
    for line in read_records(tmp_path, "train"):
        assert {*LOSSES, *(f"{name}_weighted" for name in LOSSES), "dsd_psd", "cirkd2_channel_weighted"} <= line.keys()


def test_a_stopped_run_continues_to_the_same_bits(tmp_path):
    teacher = write_checkpoint(tmp_path / "plain.pth")
    flags = [*TINY, "--teacher-pretrained", teacher, "--kd", KD, "--max-iterations", "4"]
    train_student.main([*flags, "--skip-val", "--save-dir", str(tmp_path / "whole")])
    with crash_at(3):  # one iteration after a checkpoint
        train_student.main([*flags, "--skip-val", "--save-dir", str(tmp_path / "stopped")])
    train_student.main([*flags, "--skip-val", "--save-dir", str(tmp_path / "stopped"), "--resume", "auto"])
    whole, stopped = (checkpoint.read(tmp_path / name / "last.pth") for name in ("whole", "stopped"))
    assert_same_checkpoints(whole, stopped)
    assert read_losses(tmp_path / "whole") == read_losses(tmp_path / "stopped")
    loss_states = whole["losses"]
    assert {"kd.losses.cirkd_pixel.queue", "kd.losses.cirkd2.channels.queue"} <= loss_states.keys()
    assert loss_states["kd.losses.adv._extra_state"]["optimizer"]["state"][0]["step"].item() == 4
    assert_equal(loss_states, stopped["losses"])
