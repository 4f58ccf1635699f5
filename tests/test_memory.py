"""A memory queue that cannot fit is refused before it is allocated."""

import pytest
import torch

from losses import build_kd
from losses.cirkd_memory import CIRKDPixel
from utils import memory
from utils.errors import UserError

CPU = torch.device("cpu")


def test_free_memory_is_a_plausible_number():
    free = memory.get_free_memory(CPU)
    assert 2**20 < free < 2**50
    assert memory.get_free_memory(torch.device("meta")) is None


@pytest.mark.parametrize("name", ["cirkd_pixel=1:size=2e12", "cirkd_region=1:size=2e12", "cirkd2=1:region_size=2e12"])
def test_a_queue_that_cannot_fit_is_refused_before_it_is_allocated(name):
    message = r"a queue of 5 x 2000000000000 vectors of 16 values \(\d+\.\d GiB\) and .* takes \d+\.\d GiB, cpu has"
    with pytest.raises(UserError, match=message):
        build_kd(name, 6, 16, 5)


def test_every_rank_of_a_host_needs_its_own_queue(monkeypatch):
    monkeypatch.setattr(memory, "get_free_memory", lambda device: 4 * 5 * 100 * 16 * 4)
    CIRKDPixel(6, 16, 5, size=100)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    CIRKDPixel(6, 16, 5, size=100)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(UserError, match="in each of 3 processes"):
        CIRKDPixel(6, 16, 5, size=100)


def test_a_queue_that_just_fits_is_refused_because_training_needs_memory_too(monkeypatch):
    size = 4 * 5 * 100 * 16
    monkeypatch.setattr(memory, "get_free_memory", lambda device: 2 * size)
    CIRKDPixel(6, 16, 5, size=100)
    monkeypatch.setattr(memory, "get_free_memory", lambda device: 2 * size - 1)
    with pytest.raises(UserError, match=r"as much again for training .*: reduce its slots, e\.g\. cirkd_pixel=1:"):
        CIRKDPixel(6, 16, 5, size=100)
    with pytest.raises(UserError, match="for cirkd2 pixel_size, region_size or channel_size"):
        build_kd("cirkd2=1:memory_region=0:pixel_size=100", 6, 16, 5)


def test_moving_a_loss_checks_the_memory_of_the_new_device(monkeypatch):
    loss = build_kd("cirkd_pixel=1:size=100", 6, 16, 5)
    free = {"cpu": None, "meta": 100}
    monkeypatch.setattr(memory, "get_free_memory", lambda device: free[device.type])
    with pytest.raises(UserError, match=r"meta has 0\.0 GiB free: reduce its slots"):
        loss.to("meta")
    loss.double()


def test_the_memory_limit_of_a_container_is_respected(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    unlimited = memory.get_free_memory(CPU)
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._read_group_memory() is None
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("3000000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 500000\n")
    assert memory.get_free_memory(CPU) == 2_500_000 < unlimited
