"""Experiments: files, plan, failures and stops, tables; and a real one on the built-in data."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import yaml

from scripts import experiment, experiment_figure
from scripts.analysis.experiment import EXPERIMENTS, Origin, read_experiment
from scripts.analysis.experiment_tables import read_records, students, teachers, training_minutes
from scripts.experiment import Job, RunnerConfig, Stop, execute, plan
from tests.conftest import ENVIRONMENT, ROOT, TINY
from tests.test_compare import make_areas, make_run
from utils.config import ROLES, parse_flags
from utils.errors import UserError

SMALL = {
    "recipe": "toy",
    "seeds": [0, 1],
    "baseline": "base",
    "settings": {"lr": 0.01, "single_path": True},
    "runs": {
        "lad": {"settings": {"teacher_pretrained": "teacher"}},
        "base": {"title": "nothing", "settings": {"kd": "none", "lr": 0.02}},
        "teacher": {"train": "teacher"},
        "plain": {"settings": {"teacher_pretrained": "base+1", "pretrained": "weights.pth"}},
    },
}


def write(path, **changes):
    path.write_text(yaml.safe_dump({**SMALL, **changes}, sort_keys=False))
    return str(path)


@pytest.fixture
def small(tmp_path):
    return write(tmp_path / "small.yaml")


def test_a_file_becomes_arms_in_an_order_that_can_be_run(small):
    found = read_experiment(small)
    assert list(found.arms) == ["teacher", "lad", "base", "plain"]
    assert found.arms["lad"].origins == {"teacher_pretrained": Origin("teacher", 0)}
    assert found.arms["plain"].origins == {"teacher_pretrained": Origin("base", 1)}
    assert found.arms["plain"].settings == {"lr": 0.01, "pretrained": "weights.pth"}
    assert found.arms["base"].settings == {"lr": 0.02, "kd": "none"}
    assert found.arms["teacher"].settings == {"lr": 0.01, "single_path": True}  # no flag of the students
    assert found.arms["base"].title == "nothing"
    assert [found.next_seed(seed, 1) for seed in (0, 1, 5)] == [1, 0, 6]


def test_a_file_on_top_of_another(small, tmp_path):
    top = {"include": "small", "seeds": [7], "only": ["base", "lad"], "runs": {"base": {"settings": {"lr": 0.3}}}}
    (tmp_path / "top.yaml").write_text(yaml.safe_dump(top))
    found = read_experiment(str(tmp_path / "top.yaml"))
    assert (found.name, found.seeds, list(found.arms)) == ("top", (7,), ["base", "teacher", "lad"])
    assert found.arms["base"].settings == {"lr": 0.3, "kd": "none"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": [1]}, "unknown key 'sedes'"),
        ({"seeds": []}, "'seeds' is missing"),
        ({"seeds": [0, 0]}, "holds one twice"),
        ({"seeds": ["a"]}, "a list of numbers"),
        ({"baseline": "bsae"}, "did you mean 'base'"),
        ({"only": ["lad"]}, "unknown baseline among the runs"),
        ({"only": ["nothing"]}, "unknown run in .* 'nothing'"),
        (
            {"runs": {"base": {"settings": {"kd": "none", "lrr": 1}}}},
            "unknown setting in .*base: 'lrr'; did you mean 'lr'",
        ),
        ({"runs": {"base": {"settings": {"lr": "fast"}}}}, "base: lr: 'fast' is not a float"),
        ({"runs": {"base": {"settings": {"seed": 3}}}}, "unknown setting in .*base: 'seed'"),
        ({"runs": {"base": {"train": "pupil"}}}, "unknown script in .*'pupil'"),
        ({"runs": {"base": {"lr": 1}}}, "base: unknown key 'lr'"),
        ({"runs": {"base": {"settings": {"pretrained": "baes"}}}}, "pretrained: 'baes'; did you mean 'base'"),
        ({"runs": {"base": {"settings": {"pretrained": "base"}}}}, "base -> base: a run cannot start from itself"),
        ({"runs": {"a-b": {}, "base": {}}}, "made of letters, digits"),
        ({"include": "small"}, "includes itself"),
        ({"settings": {"crop": 3}}, "unknown setting in .* 'crop'"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, changes, message):
    path = write(tmp_path / "small.yaml", **changes)
    with pytest.raises(UserError, match=message):
        read_experiment(path)


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(UserError, match="experiments: camvid"):
        read_experiment("camvit")
    (tmp_path / "x.yaml").write_text("a: [")
    with pytest.raises(UserError, match="is no plain yaml"):
        read_experiment(str(tmp_path / "x.yaml"))
    (tmp_path / "x.yaml").write_text("3")
    with pytest.raises(UserError, match="is a mapping"):
        read_experiment(str(tmp_path / "x.yaml"))


@pytest.mark.parametrize("name", sorted(path.stem for path in EXPERIMENTS.glob("*.yaml")))
def test_every_command_of_the_experiments_is_one_the_scripts_take(name, tmp_path):
    found = read_experiment(name)
    jobs = plan(found, RunnerConfig(data="root"), tmp_path)
    assert len(jobs) == len(found.arms) * len(found.seeds)
    done = set()
    for job in jobs.values():
        assert set(job.needs) <= done
        done.add(job.name)
        training = job.commands[0]
        role = training[0].removeprefix("train_").removesuffix(".py")
        flags = parse_flags(ROLES[role], "", training[1:])
        assert flags["save_dir"] == str(job.folder)
        for need in job.needs:
            assert str(tmp_path / need / "last.pth") in training
    if name == "camvid":
        assert "base" not in done
        assert "--teacher-pretrained" in jobs["plain-0"].commands[0]
        assert "baseline-1/last.pth" in " ".join(jobs["plain-0"].commands[0])


def test_chosen_runs_bring_what_they_start_from(small, tmp_path):
    jobs = plan(read_experiment(small), RunnerConfig(only=("plain",), seeds=(1,)), tmp_path)
    assert list(jobs) == ["base-0", "plain-1"]
    with pytest.raises(UserError, match="unknown run in --only 'plane'"):
        plan(read_experiment(small), RunnerConfig(only=("plane",)), tmp_path)


def test_a_reader_that_goes_away_is_no_error():
    line = [sys.executable, "scripts/experiment.py", "camvid", "--data", "x", "--dry-run"]
    process = subprocess.Popen(line, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 141


def python(code):
    return ("-c", code)


@pytest.fixture
def jobs(tmp_path):
    """a; b and c need a; d needs b."""

    def job(name, *needs, code="print('fine')"):
        return Job(name, tmp_path / name, (python(f"open('log', 'a').write('{name}\\n')"), python(code)), needs)

    return {j.name: j for j in (job("a"), job("b", "a"), job("c", "a"), job("d", "b"))}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Jobs work in ``tmp_path``; the order they began in."""
    monkeypatch.setattr(experiment, "ROOT", tmp_path)
    return lambda: (tmp_path / "log").read_text().split() if (tmp_path / "log").exists() else []


@pytest.mark.parametrize("slots", [1, 3])
def test_jobs_wait_for_what_they_need_and_are_not_done_twice(jobs, here, slots):
    ended = execute(jobs, [{}] * slots, Stop(None), None)
    assert all(outcome.done for outcome in ended.values())
    order = here()
    assert sorted(order) == ["a", "b", "c", "d"]
    assert order[0] == "a"
    assert order.index("b") < order.index("d")
    again = execute(jobs, [{}] * slots, Stop(None), None)
    assert {outcome.text for outcome in again.values()} == {"done before"}
    assert len(here()) == 4
    changed = {"a": replace(jobs["a"], commands=(*jobs["a"].commands, python("pass")))}
    assert execute(changed, [{}], Stop(None), None)["a"].text == "done"


def test_a_failure_takes_its_followers_along_and_nothing_else(jobs, here):
    jobs["b"] = replace(jobs["b"], commands=(python("import sys; print('no luck', file=sys.stderr); sys.exit(2)"),))
    ended = execute(jobs, [{}], Stop(None), None)
    assert [name for name, outcome in ended.items() if outcome.done] == ["a", "c"]
    assert ended["b"].failed
    assert "status 2: no luck" in ended["b"].text
    assert ended["d"].failed
    assert "b is not done" in ended["d"].text
    assert not jobs["b"].done


def test_the_deadline_stops_what_runs_and_it_can_go_on(jobs, here, tmp_path):
    slow = "import time, sys, os\nif not os.path.exists('again'): time.sleep(60)"
    jobs["b"] = replace(jobs["b"], commands=(python(slow),))
    begin = time.monotonic()
    ended = execute(jobs, [{}], Stop(0.03), None)
    assert time.monotonic() - begin < 30
    assert ended["a"].done
    assert not ended["b"].done
    assert not any(outcome.failed for outcome in ended.values())
    (tmp_path / "again").touch()
    assert all(outcome.done for outcome in execute(jobs, [{}], Stop(None), None).values())


def test_each_slot_has_its_own_gpu_or_share_of_the_cores():
    assert experiment.slots_of(RunnerConfig(gpus=("0", "3"))) == [{"CUDA_VISIBLE_DEVICES": g} for g in "03"]
    assert experiment.slots_of(RunnerConfig()) == [{}]
    shares = experiment.slots_of(RunnerConfig(jobs=2))
    assert [int(slot["OMP_NUM_THREADS"]) for slot in shares] == [max(1, len(os.sched_getaffinity(0)) // 2)] * 2
    for flags, message in ((["camvid", "--gpus", "0", "--jobs", "2"], "--jobs is for the CPU"), ([], "name one")):
        with pytest.raises(UserError, match=message):
            experiment.main(flags)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """An experiment of a baseline, a teacher and its student, one seed, run by its command: stopped, then finished."""
    folder = tmp_path_factory.mktemp("experiment")
    flags = parse_flags(ROLES["student"], "", TINY)
    settings = {k: list(v) if isinstance(v, tuple) else v for k, v in flags.items() if k != "workers"}
    runs = {
        "base": {"title": "alone", "settings": {"kd": "none"}},
        "teacher": {"title": "sees labels", "train": "teacher"},
        "lad": {"title": "taught", "settings": {"teacher_pretrained": "teacher"}},
    }
    content = {"recipe": "toy", "seeds": [4], "baseline": "base", "settings": settings, "runs": runs}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(content | {"robustness_images": 2}, sort_keys=False))
    line = [sys.executable, "scripts/experiment.py", f"{folder}/tiny.yaml", "--output", f"{folder}/runs", "--jobs", "2"]
    line += ["--records", f"{folder}/records", "--workers", "0"]
    options = {"cwd": ROOT, "env": ENVIRONMENT, "text": True, "stdout": subprocess.PIPE}
    first = subprocess.Popen(line, **options)
    time.sleep(1)
    while first.poll() is None and not list(folder.glob("runs/*/metrics.jsonl")):
        time.sleep(0.1)
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=120)
    second = subprocess.run(line, **options, timeout=300)
    third = subprocess.run(line, **options, timeout=60)
    return folder, first.returncode, second, third


def test_a_real_experiment_is_stopped_and_finished(real):
    folder, first, second, third = real
    assert first == 3
    assert second.returncode == 0, second.stdout
    assert "3 of 3 runs done" in second.stdout
    assert third.returncode == 0
    assert "begins" not in third.stdout
    for name in ("base-4", "lad-4", "teacher-4"):
        files = {path.name for path in (folder / "records" / name).iterdir()}
        wanted = {"config.yaml", "metrics.jsonl", "last.json", "best.json", "per_image_last.npz", "per_image_best.npz"}
        assert files == wanted | ({"robustness.json"} if name == "teacher-4" else set())


def test_its_tables_and_its_picture(real):
    folder = real[0]
    found = read_experiment(f"{folder}/tiny.yaml")
    header, rows = students(found, folder / "records")
    miou = {n: 100 * json.loads((folder / f"records/{n}-4/last.json").read_text())["miou"] for n in ("base", "lad")}
    by_name = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert list(by_name) == ["`base`", "`lad`"]
    for name, value in miou.items():
        assert by_name[f"`{name}`"]["last mIoU %"] == f"{value:.2f}"
        assert by_name[f"`{name}`"]["n"] == "1"
    assert float(by_name["`lad`"]["gain"]) == pytest.approx(miou["lad"] - miou["base"], abs=0.006)
    assert by_name["`base`"]["gain"] == "-"
    header, rows = teachers(found, folder / "records")
    teacher = dict(zip(header, rows[0], strict=True))
    scored = json.loads((folder / "records/teacher-4/last.json").read_text())
    assert scored["label_assisted"]
    assert teacher["last mIoU %, assisted"] == f"{100 * scored['miou']:.2f}"
    assert teacher["no label"] not in ("-", "not run")
    flags = [f"{folder}/tiny.yaml", "--records", f"{folder}/records", "--output", f"{folder}/figure.png"]
    experiment_figure.main(flags)
    assert (folder / "figure.png").stat().st_size > 10000
    with pytest.raises(UserError, match="holds no scored run"):
        experiment_figure.main([*flags, "--records", f"{folder}/nothing"])


def test_tables_of_several_seeds(tmp_path):
    path = write(tmp_path / "e.yaml", seeds=[0, 1, 2], only=["base", "lad"])
    areas = {("base", s): make_areas(0.5, s) for s in range(3)} | {("lad", s): make_areas(0.6, 9 + s) for s in (0, 2)}
    for (name, seed), counts in areas.items():
        make_run(tmp_path / f"records/{name}-{seed}", seed, counts, batch_size=4)
    for log in tmp_path.glob("records/*/metrics.jsonl"):
        log.write_text(log.read_text().replace('"ce"', '"images_per_second": 2.0, "ce"'))
    make_run(tmp_path / "records/base_other-0", 0, make_areas(0.9))  # another arm's name begins the same
    found = read_experiment(path)
    records = read_records(found, tmp_path / "records")
    assert {name: [run.seed for run in runs] for name, runs in records.items()} == {
        "base": [0, 1, 2],
        "teacher": [],
        "lad": [0, 2],
    }
    assert training_minutes(records["base"][0]) == pytest.approx(30 * 4 / 2 / 60)
    header, rows = students(found, tmp_path / "records")
    lad = next(dict(zip(header, row, strict=True)) for row in rows if row[0] == "`lad`")

    def miou(name, seed):
        total = areas[name, seed].sum(0)
        return 100 * np.mean(total[0] / (total[1] + total[2] - total[0]))

    gains = [miou("lad", s) - miou("base", s) for s in (0, 2)]
    assert lad["gain by seed"] == ", ".join(f"{gain:+.2f}" for gain in gains)
    assert lad["gain"] == f"{np.mean(gains):+.2f}"
    assert lad["n"] == "2"
    assert lad["best mIoU %"] == "not run"
    assert "p 0.0002" in lad["95 % interval over images, p"]
    _, rows = teachers(found, tmp_path / "records")
    assert rows[0][2] == "not run"
