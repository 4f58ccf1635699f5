"""Paired tests: is the difference of two data-set mIoUs more than the choice of images (bootstrap), or of seeds?"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import t, ttest_1samp

from scripts.study.analysis.runs import compute_miou
from utils.errors import UserError

CHUNK = 250  # resamples at a time; bounds memory at CHUNK x images


class Gain(NamedTuple):
    """mIoU of one group minus that of another, as fractions. Groups of several runs count by their mean."""

    difference: float
    low: float  # 95 % interval of the percentiles
    high: float
    p: float  # two-sided; below 0.05 exactly when the interval leaves out 0 (up to the resamples' grain)
    images: int
    samples: int


def stack_counts(runs: Sequence[dict[str, np.ndarray]]) -> np.ndarray:
    """Stack the pixel counts of several runs with the images in the same order: int64 ``[runs, images, 3, K]``.

    runs: of each run the counts by image name.

    Raises:
        UserError: the runs were scored on different images, or against different labels.
    """
    names = sorted(runs[0])
    for run in runs[1:]:
        other = runs[0].keys() ^ run.keys()
        if other:
            raise UserError(f"scored on different images ({len(other)}, e.g. {min(other)})")
    counts = [np.stack([run[name] for name in names]) for run in runs]
    if any(c.shape != counts[0].shape or (c[:, 1] != counts[0][:, 1]).any() for c in counts):
        raise UserError("scored against different labels")
    return np.stack(counts)


def bootstrap_gain(group: np.ndarray, baseline: np.ndarray, samples: int, seed: int) -> Gain:
    """Resample images with replacement, the same ones for every run, and score the whole data set each time.

    group, baseline: ``[runs, images, 3, K]``. p is twice the smaller share of resamples on either side of 0, each
    counted with one more, so that it is never 0 (Davison and Hinkley 1997, section 4.2).
    """
    images = group.shape[1]
    equal = np.full(images, 1 / images)
    rng = np.random.default_rng(seed)
    differences = []
    for start in range(0, samples, CHUNK):
        count = min(CHUNK, samples - start)
        weights = rng.multinomial(images, equal, count).astype(np.float64)  # how often each resample has each image
        differences.append(score_resamples(group, weights) - score_resamples(baseline, weights))
    values = np.concatenate(differences)
    low, high = np.percentile(values, (2.5, 97.5))
    tail = min((values <= 0).sum(), (values >= 0).sum())
    difference = compute_miou(group.sum(1)).mean() - compute_miou(baseline.sum(1)).mean()
    p = min(1.0, 2 * (tail + 1) / (samples + 1))
    return Gain(float(difference), float(low), float(high), p, images, samples)


def score_resamples(counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mIoU of each resample ``[resamples]``, the mean over the runs.

    counts: ``[runs, images, 3, K]``. weights: how often a resample has an image, ``[resamples, images]``.
    """
    runs, images, _, classes = counts.shape
    flat = counts.reshape(runs, images, -1).astype(np.float64)
    sums = (weights @ flat).reshape(runs, len(weights), 3, classes)
    return compute_miou(sums).mean(0)


def compute_interval_over_seeds(differences: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean difference, by the t distribution.

    It excludes 0 exactly where ``compute_p_over_seeds`` is below 0.05.

    differences: one a seed. Return None where there are not two different ones.
    """
    count = len(differences)
    if len(set(differences)) < 2:
        return None
    half_width = t.ppf(0.975, count - 1) * np.std(differences, ddof=1) / np.sqrt(count)
    mean = np.mean(differences)
    return float(mean - half_width), float(mean + half_width)


def compute_p_over_seeds(differences: Sequence[float]) -> float | None:
    """Return the p value of a paired t-test: how often would seeds alone give so large a mean difference?

    differences: one a seed. Return None where there are not two different ones.
    """
    if len(set(differences)) < 2:
        return None
    return float(ttest_1samp(differences, 0).pvalue)
