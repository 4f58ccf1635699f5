"""Test experiments: files, plans, failures, stops, tables, and a real experiment on the built-in data."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from engine.recipes import load_recipe
from engine.settings import ROLES, TrainConfig, list_settings_without_effect
from scripts.study import experiment, experiment_figure, pack_records
from scripts.study.analysis.record_files import list_runs, open_folder
from scripts.study.analysis.runs import read_run
from scripts.study.experiment import RunnerConfig, check_data, describe_next_step, lock_output
from scripts.study.experiments.definition import SET_ELSEWHERE, Origin, read_experiment
from scripts.study.experiments.figures import draw_dial, list_dial_points
from scripts.study.experiments.files import EXPERIMENTS
from scripts.study.experiments.jobs import VOLATILE, Job, execute_jobs, find_outcome
from scripts.study.experiments.plan import Machine, Places, list_arms, plan_jobs
from scripts.study.experiments.stop import StopCondition
from scripts.study.experiments.tables import (
    compute_total_minutes,
    compute_training_minutes,
    make_gains_table,
    make_students_table,
    make_summary_table,
    read_records,
)
from scripts.study.experiments.teachers_table import make_teachers_table
from tests.conftest import ENVIRONMENT, ROOT, TINY
from tests.test_compare import make_areas, make_run
from utils.errors import UserError
from utils.options import get_flag, parse_flags

SMALL_EXPERIMENT = {
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


def write_experiment(path, **changes):
    """Write the small experiment with some keys changed. Return the path as a string."""
    path.write_text(yaml.safe_dump({**SMALL_EXPERIMENT, **changes}, sort_keys=False))
    return str(path)


@pytest.mark.parametrize("name", ["camvid_fpn", "of_smp"])
def test_a_run_may_start_from_a_checkpoint_without_suffix(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "of_smp").mkdir()
    for file in ("config.json", "model.safetensors"):
        (tmp_path / "of_smp" / file).write_text("{}")
    runs = {"base": {"settings": {"kd": "none", "pretrained": name}}}
    definition = read_experiment(write_experiment(tmp_path / "small.yaml", runs=runs))
    assert definition.arms["base"].settings["pretrained"] == name


@pytest.fixture
def small(tmp_path):
    """Write the small experiment and return its path."""
    return write_experiment(tmp_path / "small.yaml")


def test_a_file_becomes_arms_in_an_order_that_can_be_run(small):
    definition = read_experiment(small)
    assert list(definition.arms) == ["teacher", "lad", "base", "plain"]
    assert definition.arms["lad"].origins == {"teacher_pretrained": Origin("teacher", 0)}
    assert definition.arms["plain"].origins == {"teacher_pretrained": Origin("base", 1)}
    assert definition.arms["plain"].settings == {"lr": 0.01, "pretrained": "weights.pth"}
    assert definition.arms["base"].settings == {"lr": 0.02, "kd": "none"}
    # single_path is a flag of teachers only
    assert definition.arms["teacher"].settings == {"lr": 0.01, "single_path": True}
    assert definition.arms["base"].title == "nothing"
    assert [definition.shift_seed(seed, 1) for seed in (0, 1, 5)] == [1, 0, 6]


def test_the_example_in_the_documentation_is_an_experiment(tmp_path):
    text = (ROOT / "docs/reproduce.md").read_text(encoding="utf-8")
    (tmp_path / "my_loss.yaml").write_text(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    definition = read_experiment(str(tmp_path / "my_loss.yaml"))
    assert definition.arms["mine"].origins == {"teacher_pretrained": Origin("teacher", 1)}
    assert len(plan_jobs(definition, Places(tmp_path), Machine())) == 12


def test_a_file_may_include_another(small, tmp_path):
    top = {"include": "small", "seeds": [7], "only": ["base", "lad"], "runs": {"base": {"settings": {"lr": 0.3}}}}
    (tmp_path / "top.yaml").write_text(yaml.safe_dump(top))
    definition = read_experiment(str(tmp_path / "top.yaml"))
    assert (definition.name, definition.seeds, list(definition.arms)) == ("top", (7,), ["base", "teacher", "lad"])
    assert definition.arms["base"].settings == {"lr": 0.3, "kd": "none"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": [1]}, "unknown key in .* 'sedes'; did you mean 'seeds'"),
        ({"1": 2}, "unknown key in .* '1'"),
        ({"seeds": []}, "'seeds' is missing"),
        ({"seeds": [0, 0]}, "no list of different numbers"),
        ({"seeds": ["a"]}, "no list of different numbers"),
        ({"seeds": 3}, "seeds: a list, not 3"),
        ({"seeds": [4]}, r"plain: teacher_pretrained: base\+1 needs more seeds"),
        ({"recipe": "toi"}, "recipe not found: .*did you mean 'toy'"),
        ({"recipe": ["toy"]}, "recipe: a word"),
        ({"robustness_images": 0}, "robustness_images: at least 1"),
        ({"robustness_images": None}, "robustness_images: a number"),
        ({"title": None}, "title: a word, not None"),
        ({"baseline": "bsae"}, "did you mean 'base'"),
        ({"baseline": ["base"]}, "baseline: a word"),
        ({"baseline": "teacher"}, "baseline: teacher reads the label"),
        ({"only": ["lad"]}, "unknown baseline among the runs"),
        ({"only": ["nothing"]}, "unknown run in .* 'nothing'"),
        ({"only": [["base"]]}, "unknown run in .*only"),
        ({"only": "base"}, "only: a list, not 'base'"),
        ({"compare": ["base"]}, "compare: 'base' is no pair"),
        ({"compare": [["base", "bse"]]}, "unknown run in .*compare: 'bse'"),
        ({"compare": [["base", "teacher"]]}, "compare: teacher reads the label"),
        ({"runs": ["base"]}, "runs: 'key: value' lines"),
        (
            {"runs": {"base": {"settings": {"kd": "none", "lrr": 1}}}},
            "unknown setting in .*base: 'lrr'; did you mean 'lr'",
        ),
        ({"runs": {"base": {"settings": {1: 2}}}}, "unknown setting in .*base: '1'"),
        ({"runs": {"base": {"settings": None}}}, "base: settings: 'key: value' lines, not None"),
        ({"runs": {"base": {"settings": {"lr": "fast"}}}}, "base: lr: 'fast' is not a float"),
        ({"runs": {"base": {"settings": {"kd": None}}}}, "base: kd: one value, not None"),
        ({"runs": {"base": {"settings": {"kd": ["cwd=3", "kd=1"]}}}}, "base: kd: one value"),
        (
            {"runs": {"base": {"settings": {"seed": 3}}}},
            "base: 'seed' is no setting of a run: write it into the list seeds:",
        ),
        ({"runs": {"s": {"settings": {"kd": "kd=1"}}}}, "s: kd: kd=1 needs teacher_pretrained: the run that is"),
        (
            {"runs": {"s": {"settings": {"kd": "none", "teacher_pretrained": "t.pth"}}}},
            "s: teacher_pretrained: kd: none trains without a teacher",
        ),
        ({"settings": {"workers": 3}}, "'workers' is no setting of a run: give --workers to experiment.py"),
        ({"runs": {"base": {"network": "r18"}}}, "unknown network in .*base: 'r18'"),
        ({"networks": {"r18": 3}, "runs": {"base": {"network": "r18"}}}, "networks: r18: 'key: value' lines, not 3"),
        ({"columns": ["a", "b"], "runs": {"base": {"row": ["x"]}}}, "base: row: 1 cells, but columns: has 2"),
        ({"runs": {"base": {"published": "73"}}}, "base: published: a number, not '73'"),
        ({"runs": {"base": {"recipe": "voc:x"}}}, "x"),
        ({"runs": {"base": {"settings": {"pretrained": "base/bets"}}}}, "unknown run in .*pretrained: 'base/bets'"),
        ({"runs": {"base": {"train": "pupil"}}}, "unknown script in .*'pupil'"),
        ({"runs": {"base": {"train": None}}}, "base: train: a word"),
        ({"runs": {"base": {"lr": 1}}}, "unknown key in .*base: 'lr'"),
        ({"runs": {"base": {"settings": {"pretrained": "baes"}}}}, "pretrained: 'baes'; did you mean 'base'"),
        (
            {"runs": {"base": {"settings": {"kd": "none", "pretrained": "base"}}}},
            "base -> base: a run cannot start from itself",
        ),
        (
            {"runs": {"base": {"settings": {"pretrained": "t"}}, "t": {"train": "teacher"}}},
            "base: pretrained: t reads the label",
        ),
        ({"runs": {"a-b": {}, "base": {}}}, "made of letters, digits"),
        ({"runs": {True: {}, "base": {}}}, "made of letters, digits"),
        (
            {"runs": {name: {"title": "x", "settings": {"kd": "none"}} for name in ("base", "b")}},
            "two runs are called 'x'",
        ),
        ({"include": "small"}, "includes itself"),
        ({"settings": {"crop": 3}}, "unknown setting in .* 'crop'"),
    ],
)
def test_mistakes_in_a_file_are_reported(tmp_path, changes, message):
    path = write_experiment(tmp_path / "small.yaml", **changes)
    with pytest.raises(UserError, match=message):
        read_experiment(path)


def test_listed_settings_exist_and_volatile_ones_change_no_result():
    assert SET_ELSEWHERE.keys() <= TrainConfig.__dataclass_fields__.keys()
    assert {get_flag(name) for name in list_settings_without_effect(TrainConfig)} >= VOLATILE


def test_missing_and_broken_files_are_reported(tmp_path):
    with pytest.raises(UserError, match="experiments: camvid"):
        read_experiment("camvit")
    (tmp_path / "x.yaml").write_text("a: [")
    with pytest.raises(UserError, match="is no plain yaml"):
        read_experiment(str(tmp_path / "x.yaml"))
    (tmp_path / "x.yaml").write_text("3")
    with pytest.raises(UserError, match="'key: value' lines, not 3"):
        read_experiment(str(tmp_path / "x.yaml"))


@pytest.mark.parametrize("name", sorted(path.stem for path in EXPERIMENTS.glob("*.yaml")))
def test_the_scripts_accept_every_command_of_the_experiments(name, tmp_path):
    definition = read_experiment(name)
    jobs = plan_jobs(definition, Places(tmp_path, data_root="root"), Machine())
    assert len(jobs) == len(definition.arms) * len(definition.seeds)
    done = set()
    for job in jobs.values():
        assert set(job.needs) <= done
        done.add(job.name)
        training = job.commands[0]
        role = training[0].removeprefix("train_").removesuffix(".py")
        flags = parse_flags(ROLES[role], "", training[1:])
        assert flags["save_dir"] == str(job.folder)
        for need in job.needs:
            assert {str(tmp_path / need / f"{kind}.pth") for kind in ("last", "best")} & set(training)
    if name == "camvid":
        assert "--teacher-pretrained" in jobs["plain-0"].commands[0]
        assert "baseline-1/last.pth" in " ".join(jobs["plain-0"].commands[0])


def test_the_scripts_choose_the_number_of_workers_unless_it_is_given(small, tmp_path):
    for workers, given in ((None, False), (0, True)):
        jobs = plan_jobs(read_experiment(small), Places(tmp_path), Machine(workers), ("base",), (1,))
        training = jobs["base-1"].commands[0]
        assert ("--workers" in training) == given


def test_chosen_runs_include_the_runs_they_start_from_at_the_needed_seeds(small, tmp_path):
    jobs = plan_jobs(read_experiment(small), Places(tmp_path), Machine(), ("plain",), (1,))
    assert list(jobs) == ["base-0", "plain-1"]
    chosen = read_experiment(write_experiment(tmp_path / "chosen.yaml", only=["plain"]))
    assert list(plan_jobs(chosen, Places(tmp_path), Machine(), seeds=(1,))) == ["base-0", "plain-1"]
    with pytest.raises(UserError, match="unknown run in --only 'plane'"):
        plan_jobs(read_experiment(small), Places(tmp_path), Machine(), ("plane",))


def test_only_the_data_sets_of_the_chosen_runs_are_needed(tmp_path):
    runs = {name: {"settings": {"dataset": name, "kd": "none"}} for name in ("camvid", "voc")}
    definition = read_experiment(write_experiment(tmp_path / "two.yaml", runs=runs, baseline="camvid"))
    places = Places(tmp_path, data="street")
    jobs = plan_jobs(definition, places, Machine(), ("camvid",))
    assert [arm.dataset for arm in list_arms(definition, jobs)] == ["camvid"]
    with pytest.raises(UserError, match="--data street: two has 2 data sets: give --data-root DIR"):
        plan_jobs(definition, places, Machine())


def test_checkpoints_are_scored_as_the_recipe_says(tmp_path):
    runs = {"base": {"settings": {"kd": "none"}}}
    path = write_experiment(tmp_path / "e.yaml", recipe="ade20k_mmseg", runs=runs, settings={})
    training, *scorings = plan_jobs(read_experiment(path), Places(tmp_path, data="ade"), Machine())["base-0"].commands
    assert "--resize" not in training
    size = [str(side) for side in load_recipe("ade20k_mmseg", "eval")["resize"]]
    for scoring in scorings:
        place = scoring.index("--resize")
        assert list(scoring[place + 1 : place + 3]) == size


def test_the_next_command_has_no_baseline_that_was_not_run():
    text = describe_next_step(RunnerConfig(), "", Path("runs"), {})
    assert "compare.py runs --html runs.html" in text


def test_a_closed_output_pipe_gives_one_line_and_no_traceback():
    line = [sys.executable, "scripts/study/experiment.py", "camvid", "--data", "x", "--dry-run"]
    process = subprocess.Popen(line, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b"ended: nothing reads the output any more\n"
    assert process.wait(timeout=60) == 141


def write_script(path, code):
    """Write a script and return a job's command that runs it."""
    path.write_text(code)
    return (str(path),)


@pytest.fixture
def jobs(tmp_path):
    """Return four jobs: b and c need a, and d needs b. Each job writes its name into ``log`` and a training record."""

    def make_job(name, *needs):
        code = f"""
import json, os, time
open({str(tmp_path / "log")!r}, "a").write("{name}\\n")
record = {{"event": "train", "iteration": 1, "at": time.time_ns()}}
if not os.path.exists({str(tmp_path / name / "metrics.jsonl")!r}):
    open({str(tmp_path / name / "metrics.jsonl")!r}, "w").write(json.dumps(record) + "\\n")
"""
        training = write_script(tmp_path / f"{name}.py", code)
        scoring = write_script(tmp_path / f"{name}-score.py", "print('fine')")
        return Job(name, tmp_path / name, (training, scoring), needs)

    return {"a": make_job("a"), "b": make_job("b", "a"), "c": make_job("c", "a"), "d": make_job("d", "b")}


def read_order(folder):
    """Read the names of the jobs in the order in which they started."""
    return (folder / "log").read_text().split()


@pytest.mark.parametrize("slots", [1, 3])
def test_jobs_wait_for_what_they_need_and_are_not_done_twice(jobs, tmp_path, slots):
    seen = []
    ended = execute_jobs(jobs, [{}] * slots, StopCondition(), lambda job: seen.append(job.name))
    assert all(outcome.done for outcome in ended.values())
    order = read_order(tmp_path)
    assert sorted(order) == sorted(seen) == ["a", "b", "c", "d"]
    assert order[0] == "a"
    assert order.index("b") < order.index("d")
    again = execute_jobs(jobs, [{}] * slots, StopCondition())
    assert {outcome.text for outcome in again.values()} == {"done before"}
    assert len(read_order(tmp_path)) == 4
    training, scoring = jobs["a"].commands
    for flag, expected in (("--workers", "done before"), ("--lr", "done")):
        changed = replace(jobs["a"], commands=((*training, flag, "3"), scoring))
        assert execute_jobs({"a": changed}, [{}], StopCondition())["a"].text == expected


def test_a_job_stays_done_after_another_spelling_of_its_data_folder_or_a_refusal(jobs, tmp_path):
    a = jobs["a"]
    job = replace(a, commands=((*a.commands[0], "--data", f"{tmp_path}/x"), a.commands[1]))
    assert execute_jobs({"a": job}, [{}], StopCondition())["a"].done
    for data in ([], ["--data", f"{tmp_path}/x/"], ["--data", f"{tmp_path}/y/../x"]):
        same = replace(a, commands=((*a.commands[0], *data), a.commands[1]))
        assert find_outcome(same).done, data
    refused = replace(a, commands=(write_script(tmp_path / "refuses.py", "import sys; sys.exit(2)"),))
    assert execute_jobs({"a": refused}, [{}], StopCondition())["a"].failed
    assert find_outcome(job).done
    other = replace(a, commands=((*a.commands[0], "--data", f"{tmp_path}/other"), a.commands[1]))
    assert find_outcome(other) is None


def test_a_job_is_not_done_if_the_run_it_needs_was_trained_again(jobs, tmp_path):
    execute_jobs(jobs, [{}] * 2, StopCondition())
    shutil.rmtree(tmp_path / "a")
    ended = execute_jobs(jobs, [{}] * 2, StopCondition())
    assert ended["a"].text == "done"
    for name in "bc":
        assert ended[name].text == f"a was trained anew since: remove {tmp_path / name} to do this run again"
        assert ended[name].failed
        shutil.rmtree(tmp_path / name)
    assert execute_jobs(jobs, [{}] * 2, StopCondition())["c"].done


def test_a_failed_job_fails_only_the_jobs_that_need_it(jobs, tmp_path):
    failing = write_script(tmp_path / "failing.py", "import sys; print('no luck', file=sys.stderr); sys.exit(2)")
    jobs["b"] = replace(jobs["b"], commands=(failing,))
    ended = execute_jobs(jobs, [{}], StopCondition())
    assert [name for name, outcome in ended.items() if outcome.done] == ["a", "c"]
    assert ended["b"].failed
    assert "status 2: no luck" in ended["b"].text
    assert ended["d"].failed
    assert "b is not done" in ended["d"].text
    assert not json.loads(jobs["b"].mark.read_text())["done"]


SLOW = """
import os, sys, time
open("{started}", "w").write(str(os.getpid()))
if not os.path.exists("{again}"): time.sleep(600)
"""


@pytest.fixture
def slow(jobs, tmp_path):
    """Make job b sleep for ten minutes, unless the file ``again`` exists when it starts."""
    code = SLOW.format(started=tmp_path / "started", again=tmp_path / "again")
    jobs["b"] = replace(jobs["b"], commands=(write_script(tmp_path / "slow.py", code),))
    return jobs


class StopWhenFileExists(StopCondition):
    """Stop as soon as a file exists."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def is_met(self):
        return self.path.exists()


def test_a_stopped_job_can_continue(slow, tmp_path):
    ended = execute_jobs(slow, [{}], StopWhenFileExists(tmp_path / "started"))
    assert ended["a"].done
    assert ended["b"].text == "stopped, to be continued"
    assert not any(outcome.failed for outcome in ended.values())
    (tmp_path / "again").touch()
    teacher = tmp_path / "a/metrics.jsonl"
    before = teacher.read_text()
    teacher.write_text('{"event": "train", "another": "training"}\n')
    assert (
        "a was trained anew since" in execute_jobs({name: slow[name] for name in "ab"}, [{}], StopCondition())["b"].text
    )
    teacher.write_text(before)
    assert all(outcome.done for outcome in execute_jobs(slow, [{}], StopCondition()).values())
    assert StopCondition(0).is_met()
    assert not StopCondition(1).is_met()


def test_no_job_outlives_the_runner(slow, tmp_path):
    started = tmp_path / "started"

    def fail(job):
        deadline = time.monotonic() + 60
        while not (started.exists() and started.read_text()) and time.monotonic() < deadline:
            time.sleep(0.01)
        raise UserError("the disk is full")

    with pytest.raises(UserError, match="the disk is full"):
        execute_jobs({"a": slow["a"], "b": replace(slow["b"], needs=())}, [{}] * 2, StopCondition(), fail)
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_jobs_and_its_handler_is_removed(number):
    before = signal.getsignal(number)
    with StopCondition() as stop:
        assert not stop.is_met()
        os.kill(os.getpid(), number)
        assert stop.is_met()
    assert signal.getsignal(number) is before


def test_a_signal_that_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopCondition() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.is_met()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_bad_paths_are_refused_before_the_first_job(small, tmp_path):
    definition = read_experiment(small)
    runs = tmp_path / "runs"
    (tmp_path / "file").touch()
    config = RunnerConfig(records=str(tmp_path / "file/x/r.zip"))
    with pytest.raises(UserError, match=r"--records .* cannot be written"):
        lock_output(config, runs)
    with pytest.raises(UserError, match=r"--data .*none: no such folder"):
        check_data(definition.arms.values(), Places(runs, str(tmp_path / "none")))
    with pytest.raises(UserError, match="--data is missing: the root folder of camvid"):
        check_data(read_experiment("camvid").arms.values(), Places(runs))
    with pytest.raises(UserError, match=r"no such folder: .*/voc"):
        check_data(read_experiment("lad_voc").arms.values(), Places(runs, data_root=str(tmp_path)))
    (tmp_path / "damaged.zip").write_bytes(b"x")
    with pytest.raises(UserError, match=r"damaged\.zip is no record file"):
        lock_output(RunnerConfig(records=str(tmp_path / "damaged.zip")), runs)
    with closing(lock_output(RunnerConfig(), runs)), pytest.raises(UserError, match="in use by another run"):
        lock_output(RunnerConfig(), runs)
    lock_output(RunnerConfig(), runs).close()
    other = tmp_path / "other"
    other.write_text("somebody's")
    (runs / ".lock").unlink()
    (runs / ".lock").symlink_to(other)
    with pytest.raises(UserError, match=r"--output .* cannot be written: Too many levels of symbolic links"):
        lock_output(RunnerConfig(), runs)
    assert other.read_text() == "somebody's"


def test_each_slot_has_its_own_gpus_or_share_of_the_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    make = experiment.make_slots
    assert make(RunnerConfig(gpus=("0", "3"))) == [{"CUDA_VISIBLE_DEVICES": g} for g in "03"]
    four = RunnerConfig(gpus=("0", "1", "2", "3"), processes=2)
    assert make(four) == [{"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "2,3"}]
    assert make(RunnerConfig()) == [{}]
    shares = make(RunnerConfig(jobs=2))
    assert all(slot["CUDA_VISIBLE_DEVICES"] == "" for slot in shares)
    assert [int(slot["OMP_NUM_THREADS"]) for slot in shares] == [max(1, len(os.sched_getaffinity(0)) // 2)] * 2
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert [slot["OMP_NUM_THREADS"] for slot in make(RunnerConfig(jobs=2))] == ["3", "3"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["camvid", "--gpus", "0", "--jobs", "2"], "--jobs is for the CPU"),
        (["camvid", "--gpus", "0", "1", "2", "--processes", "2"], "3 GPUs cannot be shared by runs of 2 processes"),
        (["camvid", "--data", "a", "--data-root", "b"], "--data is the folder of one data set"),
        (["cirkd", "--data", "a", "--dry-run"], "cirkd has 3 data sets: give --data-root DIR"),
        (["camvid", "--slurm-args", "x"], "--slurm-args is for --slurm"),
        (["camvid", "--slurm", "--records", "x.zip"], "--records is for runs of this machine"),
        (["camvid", "--records", "results/camvid"], "--records results/camvid: a record file is called NAME.zip"),
        ([], "name an experiment"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        experiment.main(flags)


@pytest.mark.parametrize("folder", [".", "scripts", "scripts/study/experiments"])
def test_printed_commands_work_from_the_folder_of_the_caller(folder, capsys, monkeypatch):
    monkeypatch.chdir(ROOT / folder)
    experiment.main(["lad_voc", "--data-root", "my data", "--processes", "2", "--dry-run"])
    first = shlex.split(capsys.readouterr().out.splitlines()[0])
    assert first[2:5] == ["--standalone", "--nproc-per-node", "2"]
    launcher, script = Path(first[1]), Path(first[5])
    assert launcher.resolve() == ROOT / "scripts/torchrun.py"
    assert script.resolve() == ROOT / "train_student.py"
    assert folder != "." or first[5] == "train_student.py"
    assert first[first.index("--data") + 1] == "my data/voc"


@pytest.fixture(scope="module")
def real_experiment(tmp_path_factory):
    """Run an experiment of three runs by its command: stop it, finish it, and start it once more."""
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
    line = [sys.executable, f"{ROOT}/scripts/study/experiment.py", "tiny.yaml", "--output", "runs", "--jobs", "2"]
    line += ["--records", "records.zip", "--workers", "0"]
    options = {"cwd": folder, "env": ENVIRONMENT, "text": True, "stdout": subprocess.PIPE}
    first = subprocess.Popen(line, **options)
    while first.poll() is None and not list(folder.glob("runs/*/last.pth")):
        time.sleep(0.02)
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=120)
    second = subprocess.run(line, **options, timeout=1200)
    third = subprocess.run(line, **options, timeout=60)
    return folder, first.returncode, second, third


@pytest.mark.slow
def test_a_real_experiment_is_stopped_and_finished(real_experiment):
    folder, first, second, third = real_experiment
    assert first == 3
    assert second.returncode == 0, second.stdout
    assert "3 of 3 runs done" in second.stdout
    assert third.returncode == 0
    assert "begins" not in third.stdout
    script = os.path.relpath(ROOT / "scripts/study/compare.py", folder)
    assert f"next: python {script} --baseline base records.zip --html runs.html" in third.stdout
    logs = [path.read_text() for path in folder.glob("runs/*/log.txt")]
    assert any("continues after iteration" in log for log in logs)
    for name in ("base-4", "lad-4", "teacher-4"):
        files = {path.name for path in open_folder(folder / "records.zip" / name).iterdir()}
        wanted = {"config.yaml", "metrics.jsonl", "last.json", "best.json", "per_image_last.npz", "per_image_best.npz"}
        assert files == wanted | ({"robustness.json"} if name == "teacher-4" else set())


@pytest.mark.slow
def test_a_real_experiment_has_tables_and_a_figure(real_experiment):
    folder = real_experiment[0]
    definition = read_experiment(f"{folder}/tiny.yaml")
    records = open_folder(folder / "records.zip")
    header, rows = make_students_table(definition, records)
    miou = {n: 100 * json.loads((records / f"{n}-4/last.json").read_text())["miou"] for n in ("base", "lad")}
    assert f"| taught | {miou['lad']:.2f} (1) |" in real_experiment[2].stdout
    by_title = {row[1]: dict(zip(header, row, strict=True)) for row in rows}
    assert [row[0] for row in rows] == ["[`base`](results/tiny.zip)", "[`lad`](results/tiny.zip)"]
    for name, title in (("base", "alone"), ("lad", "taught")):
        assert by_title[title]["last mIoU % (seeds)"] == f"{miou[name]:.2f} (1)"
    header, rows = make_gains_table(definition, records)
    lad = dict(zip(header, rows[0], strict=True))
    assert len(rows) == 1
    assert (lad["training"], lad["compared with"], lad["p over seeds"]) == ("taught", "alone", "one seed")
    assert float(lad["gain in points"]) == pytest.approx(miou["lad"] - miou["base"], abs=0.006)
    header, rows = make_teachers_table(definition, records)
    teacher = dict(zip(header, rows[0], strict=True))
    scored = json.loads((records / "teacher-4/last.json").read_text())
    assert scored["label_assisted"]
    assert any("2 of" in name for name in header)
    assert teacher["LABEL-ASSISTED last mIoU % (seeds)"] == f"{100 * scored['miou']:.2f} (1)"
    assert "not run" not in teacher.values()
    experiment_figure.main([f"{folder}/tiny.yaml", "--records", f"{folder}/records.zip", "--output", f"{folder}"])
    assert (folder / "tiny_dial.png").stat().st_size > 10000
    with pytest.raises(UserError, match="holds no scored run"):
        experiment_figure.main([f"{folder}/tiny.yaml", "--records", f"{folder}/nothing"])


def test_tables_of_several_seeds(tmp_path):
    path = write_experiment(
        tmp_path / "e.yaml", seeds=[0, 1, 2], only=["base", "lad", "plain"], compare=[["lad", "plain"]]
    )
    areas = {("base", s): make_areas(0.5, s) for s in range(3)} | {("lad", s): make_areas(0.6, 9 + s) for s in (0, 2)}
    for (name, seed), counts in areas.items():
        make_run(tmp_path / f"records/{name}-{seed}", seed, counts, batch_size=4)
    for log in tmp_path.glob("records/*/metrics.jsonl"):
        log.write_text(log.read_text().replace('"ce"', '"images_per_second": 2.0, "ce"'))
    make_run(tmp_path / "records/base_other-0", 0, make_areas(0.9))  # another run, whose name also starts with base
    definition = read_experiment(path)
    records = read_records(definition, tmp_path / "records")
    assert {name: [run.seed for run in runs] for name, runs in records.items()} == {
        "base": [0, 1, 2],
        "teacher": [],
        "lad": [0, 2],
        "plain": [],
    }
    assert compute_training_minutes(records["base"][0]) == pytest.approx(30 * 4 / 2 / 60)
    header, rows = make_students_table(definition, tmp_path / "records")
    lad = next(dict(zip(header, row, strict=True)) for row in rows if row[1] == "lad")

    def miou(name, seed):
        total = areas[name, seed].sum(0)
        return 100 * np.mean(total[0] / (total[1] + total[2] - total[0]))

    assert lad["last mIoU % (seeds)"].endswith(" (2)")
    assert lad["best mIoU % (seeds)"] == "not run"
    header, rows = make_gains_table(definition, tmp_path / "records")
    rows = {(row[0], row[1]): dict(zip(header, row, strict=True)) for row in rows}
    assert list(rows) == [("lad", "nothing")]  # a run that has not been done has no gain
    expected = [miou("lad", s) - miou("base", s) for s in (0, 2)]
    lad = rows["lad", "nothing"]
    assert lad["gain by seed"] == ", ".join(f"{gain:+.2f}" for gain in expected)
    assert lad["gain in points"] == f"{np.mean(expected):+.2f} ± {np.std(expected, ddof=1):.2f}"
    t = np.mean(expected) / (np.std(expected, ddof=1) / 2**0.5)
    p = 1 - 2 / np.pi * np.arctan(abs(t))  # Student's t with one degree of freedom is Cauchy's distribution
    assert float(lad["p over seeds"]) == pytest.approx(p, rel=0.05)
    _, rows = make_teachers_table(definition, tmp_path / "records")
    assert rows[0][2] == "not run"


def test_the_summary_counts_the_teachers_time_and_compares_with_two_baselines(tmp_path):
    runs = {"long": {"title": "longer", "settings": {"kd": "none"}}}
    path = write_experiment(tmp_path / "e.yaml", runs=SMALL_EXPERIMENT["runs"] | runs, equal_time="long")
    scored = {"base": (0.5, (0, 1)), "long": (0.55, (0, 1)), "lad": (0.6, (0, 1)), "teacher": (0.9, (0,))}
    for name, (share, seeds) in scored.items():
        for seed in seeds:
            make_run(tmp_path / f"records/{name}-{seed}", seed, make_areas(share, seed), batch_size=4)
    for log in tmp_path.glob("records/*/metrics.jsonl"):
        speed = 0.1 if log.parent.name.startswith(("teacher", "long")) else 0.2
        log.write_text(log.read_text().replace('"ce"', f'"images_per_second": {speed}, "ce"'))
    definition = read_experiment(path)
    header, rows = make_summary_table(definition, tmp_path / "records")
    rows = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    minutes = next(name for name in header if name.startswith("minutes, teacher included"))
    assert rows["nothing"][minutes] == "10"  # 30 iterations of 4 images at 0.2 a second
    assert rows["lad"][minutes] == "30"  # and a teacher at half the speed; seed 1 has no teacher and does not count
    over_base, over_long = (f"points over the {minutes}-minute baseline" for minutes in (10, 20))
    assert rows["nothing"][over_base] == rows["longer"][over_long] == ""
    _, listed = make_gains_table(definition, tmp_path / "records")
    listed = {(row[0], row[1]): row[2] for row in listed}
    for column, base in ((over_base, "nothing"), (over_long, "longer")):
        assert rows["lad"][column].startswith(listed["lad", base])
        assert rows["lad"][column].startswith("+")
    with pytest.raises(UserError, match="equal_time: teacher reads the label"):
        read_experiment(write_experiment(tmp_path / "f.yaml", equal_time="teacher"))


def test_minutes_count_a_run_once_if_teacher_and_student_both_start_from_it(tmp_path):
    runs = {
        "base": {"settings": {"kd": "none"}},
        "teacher": {"train": "teacher", "settings": {"pretrained": "base/best"}},
        "lad": {"settings": {"pretrained": "base/best", "teacher_pretrained": "teacher"}},
        "other": {"settings": {"pretrained": "base+1", "teacher_pretrained": "teacher"}},
    }
    path = write_experiment(tmp_path / "e.yaml", runs=runs)
    for name, seed in (("base", 0), ("base", 1), ("teacher", 0), ("lad", 0), ("other", 0)):
        make_run(tmp_path / f"records/{name}-{seed}", seed, make_areas(), batch_size=4)
    for log in tmp_path.glob("records/*/metrics.jsonl"):  # 30 iterations of 4 images: a minute each
        log.write_text(log.read_text().replace('"ce"', '"images_per_second": 2.0, "ce"'))
    definition = read_experiment(path)
    records = read_records(definition, tmp_path / "records")
    assert compute_total_minutes(definition, records, "lad", 0) == pytest.approx(3)
    # other starts from base at another seed, which counts as well
    assert compute_total_minutes(definition, records, "other", 0) == pytest.approx(4)
    assert compute_total_minutes(definition, records, "lad", 1) is None


def test_the_dial_pairs_every_strength_with_its_first_student(tmp_path):
    codes = {"b": ("near", 0.3), "c": ("random", None), "a": ("near", 0.1), "d": ("near", 10.0)}
    runs = {"base": {"settings": {"kd": "none"}}, "one": {"train": "teacher", "settings": {"single_path": True}}}
    for name, (kind, std) in codes.items():
        noise = {"label_codes": kind} | ({"code_std": std} if std else {})
        runs[f"t_{name}"] = {"train": "teacher", "settings": noise}
        runs[f"s_{name}"] = {"settings": {"teacher_pretrained": f"t_{name}+1"}}
    runs["t_e"] = {"train": "teacher", "settings": {"consistency": "cwd=1"}}
    runs["s_e"] = {"settings": {"teacher_pretrained": "t_e"}}
    runs["s_one"] = {"settings": {"teacher_pretrained": "one"}}
    runs["again"] = {"settings": {"teacher_pretrained": "t_a", "pretrained": "base"}}
    definition = read_experiment(write_experiment(tmp_path / "e.yaml", runs=runs, settings={}))
    places = {"a": "0.1", "b": "0.3", "d": "10.0", "e": "random", "c": "random"}
    points = [(point.place, point.teacher, point.student) for point in list_dial_points(definition)]
    assert points == [(place, f"t_{x}", f"s_{x}") for x, place in places.items()]
    assert draw_dial(definition, tmp_path / "records") is None
    for name in ("base", "s_a", "s_c"):
        make_run(tmp_path / f"records/{name}-0", 0, make_areas())
    figure = draw_dial(definition, tmp_path / "records")
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == ["0.1", "random"]


def test_the_dial_reads_the_recipe_of_the_teacher(tmp_path):
    """The recipe `light` gives a teacher codes 'near' of strength 0.1."""
    runs = {"base": {"settings": {"kd": "none"}}, "teacher": {"train": "teacher"}}
    runs["student"] = {"settings": {"teacher_pretrained": "teacher"}}
    (point,) = list_dial_points(
        read_experiment(write_experiment(tmp_path / "e.yaml", recipe="light", runs=runs, settings={}))
    )
    assert (point.place, point.loss) == ("0.1", "cwd=1")


def test_teachers_of_several_data_sets_were_measured_on_different_images(tmp_path):
    runs = {"base": {"settings": {"kd": "none"}}}
    for name in ("camvid", "voc"):
        runs[f"teacher_{name}"] = {"train": "teacher", "settings": {"dataset": name}}
    definition = read_experiment(write_experiment(tmp_path / "e.yaml", runs=runs, settings={}))

    def write_robustness(run, data):
        make_run(tmp_path / f"records/{run}", 0, make_areas())
        record = {"name": "as trained", "value": "", "miou": [0.5], "share": 0.0, "follows_wrong": None, "kl": 0.0}
        text = json.dumps({"data": data, "results": {"teacher": [record]}})
        (tmp_path / f"records/{run}/robustness.json").write_text(text)

    write_robustness("teacher_camvid-0", "camvid val, 2 of 3 images, 2 draws")
    write_robustness("teacher_voc-0", "voc val, 4 of 5 images, 2 draws")
    header, rows = make_teachers_table(definition, tmp_path / "records")
    assert "some images" in header[2]
    assert [row[2] for row in rows] == ["50.00", "50.00"]
    write_robustness("teacher_voc-1", "voc val, 5 of 5 images, 2 draws")
    with pytest.raises(UserError, match=r"robustness of different images: voc val, 4 of 5 .*; voc val, 5 of 5"):
        make_teachers_table(definition, tmp_path / "records")


@pytest.mark.parametrize(
    "content", ['{"data": 1}', "[1]", "3", '{"data": "", "results": {}}', "{", '{"results": {"a": [{}]}}']
)
def test_a_damaged_record_is_named(tmp_path, content):
    path = write_experiment(tmp_path / "e.yaml")
    folder = tmp_path / "records/teacher-0"
    make_run(folder, 0, make_areas())
    (folder / "robustness.json").write_text(content)
    with pytest.raises(UserError, match=r"robustness.json is (no result|damaged)"):
        make_teachers_table(read_experiment(path), tmp_path / "records")


def test_minutes_of_an_interrupted_run(tmp_path):
    """Iterations 0 to 10 ran at 4 images per second. After a stop, iterations 15 to 20 ran at 1 image per second."""
    make_run(tmp_path / "r", 0, make_areas(), batch_size=2)
    lines = [
        {"event": "start", "iteration": 0},
        {"event": "train", "iteration": 10, "images_per_second": 4.0},
        {"event": "start", "iteration": 15},
        {"event": "train", "iteration": 20, "images_per_second": 1.0},
    ]
    (tmp_path / "r/metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert compute_training_minutes(read_run(tmp_path / "r", "r")) == pytest.approx((10 * 2 / 4 + 5 * 2 / 1) / 60)


def test_minutes_of_a_run_on_one_thread_are_processor_time(tmp_path):
    make_run(tmp_path / "r", 0, make_areas(), batch_size=2)
    lines = [{"event": "start", "iteration": 0, "device": "cpu: x", "threads": 1}]
    lines += [{"event": "train", "iteration": i, "images_per_second": 4.0, "cpu_seconds": 3.0} for i in (10, 20)]
    for threads, minutes in ((1, 6 / 60), (2, 20 * 2 / 4 / 60)):
        lines[0]["threads"] = threads
        (tmp_path / "r/metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
        assert compute_training_minutes(read_run(tmp_path / "r", "r")) == pytest.approx(minutes)


def test_runs_are_added_to_a_record_file_one_by_one(tmp_path, capsys):
    make_run(tmp_path / "runs/a-0", 0, make_areas())
    make_run(tmp_path / "runs/b-0", 0, make_areas(0.6))
    (tmp_path / "runs/b-0/job.json").write_text('{"done": false}')
    for name in "ab":
        (tmp_path / f"runs/{name}-0/eval-last.json").rename(tmp_path / f"runs/{name}-0/last.json")
        (tmp_path / f"runs/{name}-0/last.pth").write_bytes(b"large")
    archive = tmp_path / "records.zip"
    line = [str(tmp_path / "runs/a-0"), str(tmp_path / "runs/b-0"), "--records", str(archive)]
    pack_records.main(line)
    out = capsys.readouterr().out
    assert "b-0: not finished, passed over" in out
    assert "1 of 1 finished runs are new or changed: a-0" in out
    first = archive.read_bytes()
    (tmp_path / "runs/a-0/config.yaml").touch()
    pack_records.main(line)
    assert archive.read_bytes() == first
    (tmp_path / "runs/b-0/job.json").write_text('{"done": true}')
    pack_records.main(line)
    second = archive.read_bytes()
    directory = first.index(b"PK\x01\x02")
    assert second[:directory] == first[:directory], "what is there keeps its bytes"
    runs = list_runs(open_folder(archive))
    assert [run.name for run in runs] == ["a-0", "b-0"]
    assert not (runs[0] / "last.pth").exists()
    for run in runs:
        (view,) = read_run(run, run.name).scores
        assert read_run(run, run.name).scores[view] == read_run(tmp_path / "runs" / run.name, run.name).scores[view]
    (tmp_path / "runs/a-0/metrics.jsonl").write_text("")
    pack_records.main(line)
    assert (open_folder(archive) / "a-0/metrics.jsonl").read_bytes() == b""
    assert (open_folder(archive) / "b-0/config.yaml").is_file()


def test_a_run_that_slurm_has_not_finished_is_not_packed(tmp_path, capsys):
    make_run(tmp_path / "a-0", 0, make_areas())
    (tmp_path / "a-0/slurm.json").write_text("{}")
    pack_records.main([str(tmp_path / "a-0"), "--records", str(tmp_path / "r.zip")])
    assert "a-0: not finished, passed over" in capsys.readouterr().out


def test_a_run_is_packed_under_the_name_of_its_folder(tmp_path, monkeypatch):
    make_run(tmp_path / "runs/a-0", 0, make_areas())
    monkeypatch.chdir(tmp_path / "runs/a-0")
    pack_records.main([".", "--records", str(tmp_path / "r.zip")])
    assert [run.name for run in list_runs(open_folder(tmp_path / "r.zip"))] == ["a-0"]


def test_damaged_record_files_are_refused(tmp_path):
    archive = tmp_path / "x.zip"
    make_run(tmp_path / "a-0")
    pack_records.main([str(tmp_path / "a-0"), "--records", str(archive)])
    whole = archive.read_bytes()
    with zipfile.ZipFile(archive) as file:
        info = file.getinfo("a-0/config.yaml")
    middle = info.header_offset + 30 + len(info.filename) + info.compress_size // 2
    archive.write_bytes(whole[:middle] + bytes(byte ^ 255 for byte in whole[middle : middle + 6]) + whole[middle + 6 :])
    with pytest.raises(UserError, match=r"x\.zip is damaged: a-0/config\.yaml"):
        open_folder(archive / "a-0")
    archive.write_bytes(whole[:-200])
    cut = archive.read_bytes()
    message = r"x\.zip is no record file: it is no zip file, or cut off"
    with pytest.raises(UserError, match=message):
        open_folder(archive)
    with pytest.raises(UserError, match=message):
        pack_records.main([str(tmp_path / "a-0"), "--records", str(archive)])
    assert archive.read_bytes() == cut


def test_bad_record_files_and_run_folders_are_refused(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"garbage")
    with pytest.raises(UserError, match=r"x\.zip is no record file"):
        open_folder(tmp_path / "x.zip")
    make_run(tmp_path / "a-0")
    for flags, message in (
        (["--records", str(tmp_path / "y.zip")], "no runs given"),
        ([str(tmp_path / "a-0")], "--records FILE is missing"),
        ([str(tmp_path / "a-0"), "--records", str(tmp_path / "x.zip")], r"x\.zip is no record file"),
        ([str(tmp_path / "none"), "--records", str(tmp_path / "y.zip")], "is no run folder"),
        ([f"{tmp_path}/a-0", f"{tmp_path}/b/a-0", "--records", f"{tmp_path}/y.zip"], "two runs are called a-0"),
    ):
        with pytest.raises(UserError, match=message):
            pack_records.main(flags)
