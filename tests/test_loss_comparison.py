"""The experiment that compares losses contains every loss."""

from losses import LOSSES, parse_losses
from scripts.study.experiments.definition import Origin, read_experiment


def test_every_loss_is_in_the_comparison_once_with_each_teacher():
    arms = read_experiment("losses").arms
    for name in LOSSES:
        for suffix, teacher in (("plain", "teacher_plain"), ("lad", "teacher_near_01")):
            arm = arms[f"{name}_{suffix}"]
            assert name in parse_losses(arm.settings["kd"])
            assert arm.origins["teacher_pretrained"] == Origin(teacher, 1)
