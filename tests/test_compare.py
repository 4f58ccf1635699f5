"""compare.py: grouping, means, the paired bootstrap and the pictures, on run folders that the tests write."""

import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import yaml
from PIL import Image

from datasets import build_dataset
from engine.metrics import Metrics
from scripts.study import compare
from scripts.study.analysis import charts, gained_lost, page, report, style
from scripts.study.analysis.groups import read_groups
from scripts.study.analysis.paired import bootstrap_gain, stack_counts
from scripts.study.analysis.runs import compute_miou, read_run
from utils.errors import UserError

NAMES = [f"{i:04}" for i in range(30)]


def make_areas(quality=0.5, seed=0, images=30, classes=4, labels=0):
    """Draw random pixel counts of intersection, label and prediction: int64 ``[images, 3, classes]``.

    ``labels`` is the seed of the label counts. Runs with the same value have the same labels.
    """
    label = np.random.default_rng(labels).integers(50, 100, (images, classes))
    rng = np.random.default_rng(100 + seed)
    intersection = rng.binomial(label, np.clip(rng.normal(quality, 0.1, (images, 1)), 0.05, 0.95))
    return np.stack([intersection, label, intersection + rng.integers(5, 20, label.shape)], 1)


def make_run(folder, seed=0, areas=None, checkpoint="last", log=True, assisted=False, **settings):
    """Write the files that training and eval.py leave in a run folder. Return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"dataset": "toy", "data": "", "lr": 0.1, "seed": seed, "save_dir": str(folder), "workers": seed}
    (folder / "config.yaml").write_text(yaml.safe_dump(config | settings))
    if log:
        lines = [{"event": "start", "iteration": 0, "card": {"label_noise": None}}]
        for i in (10, 20, 30):
            lines.append({"event": "train", "iteration": i, "loss": 3 / i + seed / 100, "lr": 0.1, "ce": 2 / i})
            lines.append({"event": "val", "iteration": i, "miou": 0.5 - abs(i - 20) / 100, "pixel_accuracy": 0.7})
            lines.append({"event": "val_iou", "iteration": i, "iou/a": 0.3, "iou/b": None, "iou/c": i / 100})
        text = "\n".join(map(json.dumps, lines)) + '\n{"event": "train", "iter'  # a killed run leaves a partial line
        (folder / "metrics.jsonl").write_text(text)
    if areas is not None:
        total = areas.sum(0)
        confusion = np.diag(total[0])
        confusion[:, 0] += total[1] - total[0]
        result = {
            "checkpoint": f"{folder}/{checkpoint}.pth",
            "dataset": "toy",
            "split": "val",
            "protocol": "single scale, whole image" + (", LABEL-ASSISTED" if assisted else ""),
            "label_assisted": assisted,
            "miou": float(compute_miou(total)),
            "pixel_accuracy": 0.8,
            "iou": dict(zip("abcd", (total[0] / (total[1] + total[2] - total[0])).tolist(), strict=True)),
            "confusion": confusion.tolist(),
        }
        (folder / f"eval-{checkpoint}.json").write_text(json.dumps(result))
        counts = dict(zip(("intersection", "label", "prediction"), areas.swapaxes(0, 1), strict=True))
        np.savez(folder / "per_image.npz", names=NAMES[: len(areas)], **counts)
    return str(folder)


def test_runs_that_differ_only_in_seed_are_a_group(tmp_path):
    runs = [make_run(tmp_path / f"lad-{seed}", seed) for seed in (0, 1)]
    other = make_run(tmp_path / "lad-slow", 0, lr=0.2)
    groups = read_groups([*runs, other])
    assert {name: [run.seed for run in members] for name, members in groups.items()} == {"lad": [0, 1], "lad-slow": [0]}


MACHINE_SETTINGS = [
    {"data": "/here/camvid", "pretrained_base": "/here/r18.pth", "tf32": True, "compile": False, "backend": "auto"},
    {"data": "/there/camvid/", "pretrained_base": "r18.pth", "tf32": False, "compile": True, "backend": "gloo"},
]


def test_runs_on_other_machines_are_one_group(tmp_path):
    runs = [make_run(tmp_path / f"s-{seed}", seed, **machine) for seed, machine in enumerate(MACHINE_SETTINGS)]
    runs.append(make_run(tmp_path / "small", 2, **MACHINE_SETTINGS[0] | {"data": "/here/camvid_240"}))
    runs.append(make_run(tmp_path / "bf16", 2, **MACHINE_SETTINGS[0], amp="bf16"))
    assert {name: len(members) for name, members in read_groups(runs).items()} == {"s": 2, "small": 1, "bf16": 1}


def test_students_whose_teachers_differ_only_in_seed_are_one_group(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / f"teacher-{seed}", seed)
        make_run(tmp_path / f"s-{seed}", seed, teacher_pretrained=f"{tmp_path}/teacher-{seed}/last.pth")
    make_run(tmp_path / "weak", 0, lr=0.001)
    odd = make_run(tmp_path / "odd", 1, teacher_pretrained=f"{tmp_path}/weak/last.pth")
    best = make_run(tmp_path / "of-best", 1, teacher_pretrained=f"{tmp_path}/teacher-1/best.pth")
    groups = read_groups([f"{tmp_path}/s-0", f"{tmp_path}/s-1", odd, best])
    assert {name: len(members) for name, members in groups.items()} == {"s": 2, "odd": 1, "of-best": 1}


def test_a_moved_student_finds_its_teacher_in_the_folder_beside_it(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / f"teacher-{seed}", seed)
        make_run(tmp_path / f"s-{seed}", seed, teacher_pretrained=f"runs/gone/teacher-{seed}/last.pth")
    make_run(tmp_path / "odd", 1, teacher_pretrained="runs/gone/unknown/last.pth")
    groups = read_groups([f"{tmp_path}/{name}" for name in ("s-0", "s-1", "odd")])
    assert {name: len(members) for name, members in groups.items()} == {"s": 2, "odd": 1}


def test_a_setting_that_an_old_config_lacks_has_its_default(tmp_path):
    make_run(tmp_path / "s-0", 0)
    make_run(tmp_path / "s-1", 1, optimizer="sgd", task_loss="")
    make_run(tmp_path / "t-2", 2, optimizer="adamw")
    groups = read_groups([f"{tmp_path}/{name}" for name in ("s-0", "s-1", "t-2")])
    assert {name: len(members) for name, members in groups.items()} == {"s": 2, "t-2": 1}


def test_runs_that_were_started_from_their_own_checkpoints_are_one_group(tmp_path):
    runs = [make_run(tmp_path / f"s-{seed}", seed, pretrained=f"{tmp_path}/s-{seed}/best.pth") for seed in (0, 1)]
    assert {name: len(members) for name, members in read_groups(runs).items()} == {"s": 2}


@pytest.mark.parametrize(
    "damage",
    [
        b"\xff\xfe\n",
        b"12\n",
        b'{"event": "train"}\n',
        b'{"iteration": 1}\n',
        b'{"event": "train", "iteration": "1"}\n',
        b'{"event": ["train"], "iteration": 1}\n',
    ],
)
def test_a_damaged_line_of_the_log_is_left_out(damage, tmp_path):
    folder = tmp_path / "a"
    whole = read_run(Path(make_run(folder)), "a").curves
    log = folder / "metrics.jsonl"
    log.write_bytes(damage + log.read_bytes())
    assert read_run(folder, "a").curves == whole


def test_runs_of_one_name_are_told_apart_and_bad_folders_are_refused(tmp_path):
    a, b = make_run(tmp_path / "x/run", 0), make_run(tmp_path / "y/run", 0)
    (runs,) = read_groups([a, b]).values()
    assert [run.name for run in runs] == ["x/run", "y/run"]
    assert any("shares seed 0" in note for run in runs for note in run.notes)
    for folders, message in (([a, a], "is given twice"), ([f"{tmp_path}"], "is no run folder"), ([], "no runs given")):
        with pytest.raises(UserError, match=message):
            read_groups(folders)


def test_miou_of_counts_is_the_metrics_miou():
    confusion = np.array([[5, 1, 0, 0], [2, 7, 0, 0], [0, 3, 0, 0], [0, 0, 0, 0]])
    areas = np.stack([confusion.diagonal(), confusion.sum(1), confusion.sum(0)])
    assert compute_miou(areas) == pytest.approx(Metrics(confusion, 1).miou(), rel=1e-12)


def test_bootstrap_of_equal_and_of_better_runs():
    base, better = make_areas(0.5)[None], make_areas(0.7, seed=1)[None]
    same = bootstrap_gain(base, base, 500, 0)
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)
    gain = bootstrap_gain(better, base, 500, 0)
    assert gain.difference == pytest.approx(compute_miou(better[0].sum(0)) - compute_miou(base[0].sum(0)))
    assert 0 < gain.low < gain.difference < gain.high
    assert gain.p == pytest.approx(2 / 501)
    loss = bootstrap_gain(base, better, 500, 0)
    assert (loss.low, loss.high, loss.p) == pytest.approx((-gain.high, -gain.low, gain.p))
    assert bootstrap_gain(better, base, 500, 0) == gain


def test_bootstrap_agrees_with_a_loop():
    group, base = (np.stack([make_areas(q, seed=s) for s in (0, 1)]) for q in (0.52, 0.5))
    gain = bootstrap_gain(group, base, 4000, 0)
    rng = np.random.default_rng(5)
    values = []
    for _ in range(4000):
        chosen = rng.integers(30, size=30)
        scores = [np.mean([compute_miou(run[chosen].sum(0)) for run in runs]) for runs in (group, base)]
        values.append(scores[0] - scores[1])
    assert (gain.low, gain.high) == pytest.approx(np.percentile(values, (2.5, 97.5)), abs=0.002)


def test_p_of_runs_that_do_not_differ():
    """A coin decides which run did better on an image. Then p is below 0.1 in about a tenth of the trials."""
    a, b = make_areas(0.5, seed=1, images=60), make_areas(0.5, seed=2, images=60)
    below = 0
    for trial in range(150):
        swap = np.random.default_rng(trial).random(60) < 0.5
        one = np.where(swap[:, None, None], a, b)
        below += bootstrap_gain(one[None], (a + b - one)[None], 200, trial).p < 0.1
    assert 0.03 < below / 150 < 0.2


def test_only_counts_of_the_same_images_and_labels_are_paired():
    areas = dict(zip(NAMES, make_areas(), strict=True))
    shuffled = dict(sorted(areas.items(), reverse=True))
    assert np.array_equal(*stack_counts([areas, shuffled]))
    with pytest.raises(UserError, match="different images"):
        stack_counts([areas, {name: areas[name] for name in NAMES[1:]}])
    with pytest.raises(UserError, match="different labels"):
        stack_counts([areas, dict(zip(NAMES, make_areas(labels=1), strict=True))])


def test_compare_writes_gains_tables_and_pictures(tmp_path, capsys):
    runs = [make_run(tmp_path / f"base-{s}", s, make_areas(0.5, s)) for s in (0, 1)]
    runs += [make_run(tmp_path / f"lad-{s}", s, make_areas(0.7, 10 + s), lr=0.2) for s in (0, 1)]
    # this overwrites the counts of last.pth
    make_run(tmp_path / "lad-0", 0, make_areas(0.75, 20), checkpoint="best", lr=0.2)
    runs.append(make_run(tmp_path / "plain", lr=0.3))
    runs.append(make_run(tmp_path / "teacher", areas=make_areas(0.9), assisted=True, lr=0.4))
    out = tmp_path / "out"
    compare.main([*runs, "--baseline", "base", "--samples", "300", "--output", str(out)])
    result = json.loads((out / "compare.json").read_text())
    rows = {(row["group"], row["view"]["checkpoint"], row["view"]["protocol"][:6]): row for row in result["rows"]}
    lad, base = rows["lad", "last", "single"], rows["base", "last", "single"]
    assert lad["gain"] == pytest.approx(np.mean(lad["miou"]) - np.mean(base["miou"]))
    assert lad["gain_by_seed"] == pytest.approx({str(s): lad["miou"][s] - base["miou"][s] for s in (0, 1)})
    one, two = lad["gain_by_seed"].values()
    t = abs(one + two) / abs(one - two)  # paired t-test of two seeds, whose p value is an arc tangent
    assert lad["p_over_seeds"] == pytest.approx(1 - 2 * np.arctan(t) / np.pi)
    assert lad["test"]["images"] == 30
    assert 0 < lad["test"]["low"] < lad["test"]["difference"] < lad["test"]["high"]
    assert "gain" not in rows["lad", "best", "single"]  # the baseline has no score of best.pth
    assert rows["plain", "last", "valida"]["miou"] == [0.4]
    assert rows["plain", "best", "valida"]["miou"] == [0.5]
    text = (out / "compare.md").read_text()
    mean, std = np.mean(base["miou"]), np.std(base["miou"], ddof=1)
    assert f"| base | 2 | {100 * mean:.2f} ± {100 * std:.2f} | - | - |" in text
    paired, spread = 50 * (one + two), 100 * abs(one - two) / 2**0.5
    assert f"| {paired:+.2f} ± {spread:.2f} | {lad['p_over_seeds']:.2g} |" in text
    assert "| teacher (LABEL-ASSISTED) | 1 |" in text  # in the table of the students, but without a gain
    assert "gain" not in rows["teacher", "last", "single"]
    assert "teacher, last, single scale, whole image: no gain: reads the label" in text
    assert "plain: no JSON of eval.py: scores are those of the training log" in text
    assert "b taken for a" in text
    names = {path.name for path in out.iterdir()}
    assert names == {
        *("compare.json", "compare.md", "per_class.png", "curves.png"),
        *("confusion-base.png", "confusion-lad.png", "confusion-teacher.png"),
    }
    assert text in capsys.readouterr().out


def test_counts_of_another_evaluation_are_left_out(tmp_path):
    run = make_run(tmp_path / "a", areas=make_areas(0.5))
    other = make_areas(0.6)
    counts = dict(zip(("intersection", "label", "prediction"), other.swapaxes(0, 1), strict=True))
    np.savez(tmp_path / "a/per_image.npz", names=NAMES, **counts)
    ((loaded,),) = read_groups([run]).values()
    assert not loaded.areas
    assert any("is of none of the scores" in note for note in loaded.notes)


def test_folders_of_images_with_other_classes_are_not_compared(tmp_path):
    runs = [make_run(tmp_path / name, areas=make_areas(), lr=lr, log=False) for name, lr in (("a", 0.1), ("b", 0.2))]
    for run, names in zip(runs, ("abcd", "bacd"), strict=True):
        file = Path(run) / "eval-last.json"
        content = json.loads(file.read_text())
        iou = dict(zip(names, content["iou"].values(), strict=True))
        file.write_text(json.dumps({**content, "dataset": "folder", "iou": iou}))
    compare.main([*runs, "--baseline", "a", "--samples", "100", "--output", str(tmp_path / "out")])
    text = (tmp_path / "out/compare.md").read_text()
    assert "## folder val (a, b, c, d), last checkpoint" in text
    assert "## folder val (b, a, c, d), last checkpoint" in text
    assert "no gain: a has no such score" in text


def test_scores_of_another_number_of_images_are_not_compared(tmp_path):
    runs = [make_run(tmp_path / name, areas=make_areas(), lr=lr, log=False) for name, lr in (("a", 0.1), ("b", 0.2))]
    for run, images in zip(runs, (2, 1), strict=True):
        file = Path(run) / "eval-last.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "dataset": "folder", "images": images}))
    compare.main([*runs, "--baseline", "a", "--samples", "100", "--output", str(tmp_path / "out")])
    text = (tmp_path / "out/compare.md").read_text()
    assert "## folder val (2 images: a, b, c, d), last checkpoint" in text
    assert "no gain: a has no such score" in text


def test_two_scores_of_one_checkpoint_are_noted(tmp_path):
    folder = Path(make_run(tmp_path / "a", areas=make_areas()))
    content = json.loads((folder / "eval-last.json").read_text())
    (folder / "eval-other.json").write_text(json.dumps(content))
    assert not any("with the same flags" in note for note in read_run(folder, "a").notes)
    (folder / "eval-other.json").write_text(json.dumps({**content, "miou": 0.25}))
    (note,) = (note for note in read_run(folder, "a").notes if "with the same flags" in note)
    assert "eval-other.json (25.00 %)" in note
    assert note.endswith("eval-last.json is left out")


@pytest.mark.parametrize(
    ("checkpoint", "iteration", "kept"),
    [("last", 10, False), ("last", 30, True), ("best", 10, False), ("best", 20, True)],
)
def test_scores_of_a_checkpoint_that_was_trained_on_are_left_out(checkpoint, iteration, kept, tmp_path):
    folder = Path(make_run(tmp_path / "run", areas=make_areas(), checkpoint=checkpoint))
    file = folder / f"eval-{checkpoint}.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "iteration": iteration}))
    run = read_run(folder, "run")
    note = f"the score of {checkpoint}.pth is of iteration {iteration}, it has"
    assert any(text.startswith(note) for text in run.notes) != kept
    scored = {view.protocol for view in run.scores}
    assert scored == ({"single scale, whole image"} if kept else {"validation during training"})


def test_counts_of_a_run_that_is_never_right_are_kept(tmp_path):
    areas = make_areas()
    areas[:, 0] = 0
    ((loaded,),) = read_groups([make_run(tmp_path / "a", areas=areas)]).values()
    (view,) = loaded.areas
    assert loaded.scores[view]["miou"] == 0
    assert not any("is of none of the scores" in note for note in loaded.notes)


def test_a_baseline_run_without_a_score_is_left_out(tmp_path):
    runs = [make_run(tmp_path / f"base-{s}", s, make_areas(0.5, s)) for s in (0, 1)]
    runs.append(make_run(tmp_path / "lad", areas=make_areas(0.7, 10), lr=0.2))
    file = tmp_path / "base-1/eval-last.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"miou": None}))
    out = tmp_path / "out"
    compare.main([*runs, "--baseline", "base", "--samples", "100", "--output", str(out)])
    rows = {row["group"]: row for row in json.loads((out / "compare.json").read_text())["rows"]}
    assert len(rows["base"]["miou"]) == 1
    assert rows["lad"]["gain"] == pytest.approx(rows["lad"]["miou"][0] - rows["base"]["miou"][0])
    assert list(rows["lad"]["gain_by_seed"]) == ["0"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.yaml", b"{", "no plain yaml"),
        ("eval.json", b"{", "is damaged"),
        ("per_image.npz", b"no archive", "no file of eval.py --per-image"),
        ("per_image.npz", b"", "no file of eval.py --per-image"),
        ("per_image.npz", b"PK\x03\x04cut off", "no file of eval.py --per-image"),
    ],
)
def test_damaged_files_are_named(tmp_path, file, content, message):
    run = make_run(tmp_path / "a", areas=make_areas())
    (tmp_path / "a" / file).write_bytes(content)
    with pytest.raises(UserError, match=f"{file}.*{message}"):
        compare.main([run, "--output", f"{tmp_path}/out"])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("miou", "0.5", "miou is 0.5"),
        ("miou", float("nan"), "miou is nan"),
        ("iou", {"a": "x"}, "iou is {'a': 'x'}"),
        ("protocol", None, "protocol is None"),
        ("label_assisted", None, "label_assisted is None"),
    ],
)
def test_a_score_that_eval_does_not_write_is_named(tmp_path, key, value, message):
    run = make_run(tmp_path / "a", areas=make_areas())
    content = json.loads((tmp_path / "a/eval-last.json").read_text())
    (tmp_path / "a/eval-last.json").write_text(json.dumps(content | {key: value}))
    with pytest.raises(UserError, match=rf"eval-last\.json is no result of eval\.py: {message}"):
        read_groups([run])
    del content["label_assisted"]  # without this key the score of a teacher would count as that of a student
    (tmp_path / "a/eval-last.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="of another version: it has no label_assisted"):
        read_groups([run])


def test_a_group_of_one_run_is_found_without_its_seed(tmp_path):
    runs = [
        make_run(tmp_path / "base-0", areas=make_areas()),
        make_run(tmp_path / "other-0", areas=make_areas(), lr=0.2),
    ]
    assert compare.find_group(read_groups(runs), "base") == "base-0"
    assert compare.find_group(read_groups(runs), "base-0") == "base-0"


def test_refusals(tmp_path):
    run = make_run(tmp_path / "base", areas=make_areas())
    with pytest.raises(UserError, match="unknown group in --baseline 'bass'; did you mean 'base'"):
        compare.main([run, "--baseline", "bass"])
    with pytest.raises(UserError, match="none of the runs has a score"):
        compare.main([make_run(tmp_path / "empty", log=False)])


def test_pixels_gained_and_lost(tmp_path):
    label = np.array([[0, 1, 1, 2, 255]])
    new, old = np.array([[0, 1, 0, 0, 1]]), np.array([[0, 0, 1, 1, 1]])
    kinds = list(gained_lost.CHANGES)
    found = [kinds[k] for k in gained_lost.make_change_map(new, old, label)[0]]
    assert found == ["right in both", "gained", "lost", "wrong in both", "ignored"]

    dataset = build_dataset("toy", "", "val")
    for run in ("base", "lad"):
        make_run(tmp_path / run, areas=make_areas(), lr=0.1 if run == "base" else 0.2)
        (tmp_path / run / "pred").mkdir()
    for i, (image, _) in enumerate(dataset.pairs):
        truth = dataset.read(i)[1]
        wrong = np.where(truth == 255, 0, (truth + 1) % 7).astype(np.uint8)
        right = np.where(truth == 255, 0, truth)
        right[:, 40 * (i + 1) :] = wrong[:, 40 * (i + 1) :]  # each image has fewer errors than the one before
        Image.fromarray(wrong).save(tmp_path / f"base/pred/{image.stem}.png")
        Image.fromarray(right).save(tmp_path / f"lad/pred/{image.stem}.png")
    changes = gained_lost.count_changes(dataset, tmp_path / "lad/pred", tmp_path / "base/pred")
    assert changes.choose_images(3) == [2, 1, 0]
    assert changes.counts[:, 1].tolist() == [0, 0, 0]
    assert changes.counts.sum() == 3 * 96 * 128
    out = tmp_path / "out"
    flags = ["--baseline", "base", "--samples", "100", "--output", str(out)]
    compare.main([f"{tmp_path}/base", f"{tmp_path}/lad", *flags])
    assert (out / "gained_lost-lad.png").is_file()
    share = json.loads((out / "compare.json").read_text())["gained_lost"]["lad"]
    assert share["gained"] == pytest.approx(changes.counts[:, 0].sum() / changes.counts[:, :4].sum())
    right = share["gained"] + share["right in both"]
    assert f"lad: pred/ (accuracy {100 * right:.2f} %) is of another evaluation" in (out / "compare.md").read_text()
    (tmp_path / f"lad/pred/{dataset.pairs[1][0].stem}.png").unlink()
    compare.main([f"{tmp_path}/base", f"{tmp_path}/lad", *flags])
    assert "lad: no gained/lost map: prediction file not found" in (out / "compare.md").read_text()


def test_confusions_by_name():
    confusion = np.array([[6, 4, 0], [1, 9, 0], [0, 0, 0]])
    pairs = charts.list_top_confusions(confusion, ["sky", "tree", "car"])
    assert [(p["label"], p["prediction"], p["share"], p["pixels"]) for p in pairs] == [
        ("sky", "tree", 0.4, 4),
        ("tree", "sky", 0.1, 1),
    ]
    shares = charts.divide_by_rows(confusion)
    assert np.nansum(shares, 1).tolist() == pytest.approx([1, 1, 0])
    assert np.isnan(shares[2]).all()


def test_a_dollar_sign_in_a_title_starts_no_formula(tmp_path):
    figure = plt.figure()
    figure.suptitle("cost$^$")
    style.save_figure(figure, tmp_path / "named.png")
    assert (tmp_path / "named.png").exists()


def test_smoothing_keeps_constants_and_means():
    assert charts._smooth_curve(np.full(200, 3.0)) == pytest.approx(np.full(200, 3.0))
    line = np.arange(200.0)
    assert charts._smooth_curve(line)[10:-10] == pytest.approx(line[10:-10])
    assert np.ptp(charts._smooth_curve(np.tile([0.0, 1.0], 100))) < 0.3


def test_a_gain_between_runs_of_other_seeds():
    row = {"miou": [0.5, 0.6], "gain": 0.05, "gain_by_seed": {0: 0.04}}
    assert report.describe_gain(row) == "+4.00 (seeds in common: 1)"
    assert report.describe_gain(row | {"gain_by_seed": {}}) == "+5.00 (no seed in common)"
    assert report.describe_gain({"miou": [0.5]}) == "-"


def test_many_pictures_are_folded_away(tmp_path):
    style.save_figure(plt.figure(), tmp_path / "a.png")
    picture = page.Picture(tmp_path / "a.png", "a < b")
    assert "<details>" not in page.format_pictures([picture] * page.FOLDED_FROM)
    folded = page.format_pictures([picture] * (page.FOLDED_FROM + 1))
    assert "<summary>5 pictures</summary>" in folded
    assert folded.count("<figcaption>a &lt; b</figcaption>") == 5


def test_one_page_holds_everything(tmp_path):
    names = ("base <b>-0", "lad-0", "base <b>-1", "lad-1")
    runs = [make_run(tmp_path / n, i // 2, make_areas(seed=i), lr=0.1 + i % 2) for i, n in enumerate(names)]
    robustness = {"results": {"t": make_robustness_records()}, "data": "toy <val>"}
    (tmp_path / "lad-1/robustness.json").write_text(json.dumps(robustness))
    target = tmp_path / "new/page.html"
    flags = [*runs, "--baseline", "base <b>", "--output", str(tmp_path / "out"), "--html", str(target)]
    compare.main([*flags, "--samples", "100"])
    content = target.read_text()
    headings = re.findall("<h2[^>]*>(.*?)</h2>", content)
    assert headings[0] == "toy val, last checkpoint, single scale, whole image"
    assert {"Training curves", "IoU by class", "Confusions", "Robustness of the teachers", "Left out"} <= set(headings)
    assert len(set(headings)) == len(headings) == content.count('<a href="#s')
    pictures = sorted(re.findall('<img alt="(.*?)" src="data:image/png;base64,', content))
    captions = re.findall("<figcaption>(.*?)</figcaption>", content)
    assert len(captions) == len(pictures)
    assert "lad-1 has 45.00 ± 7.07 % mIoU with its label and 45.00 ± 7.07 % with a plane of zeros." in captions
    classes = next(caption for caption in captions if caption.startswith("IoU of each class"))
    scores = json.loads((tmp_path / "out/compare.json").read_text())["rows"]
    gain = next(row["gain"] for row in scores if row["group"] == "lad" and row["view"]["checkpoint"] == "last")
    assert f"lad has {100 * gain:+.1f} points of mIoU over base &lt;b&gt;" in classes
    assert pictures == sorted(path.stem for path in (tmp_path / "out").glob("*.png"))
    assert "<td>base &lt;b&gt;</td>" in content
    assert "<b>" not in content
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", content)  # the page loads nothing from elsewhere
    (tmp_path / "lad-1/robustness.json").write_text("{}")
    with pytest.raises(UserError, match=r"lad-1/robustness.json is not what teacher_robustness.py writes: KeyError"):
        compare.main([*flags, "--samples", "100"])


def make_robustness_records():
    kinds = [("as trained", "", 1), ("pixel noise", "0", 2), ("codes", "fixed", 1), ("no label", "zero plane", 1)]
    record = {"pixel_std": 0.0, "miou": [0.4, 0.5], "agreement": 0.9, "share": 0.1}
    return [{**record, "name": name, "value": value} for name, value, n in kinds for _ in range(n)]
