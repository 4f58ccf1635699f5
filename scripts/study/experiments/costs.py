"""What losses gain against what a training step with them costs."""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from scripts.study.analysis import style
from scripts.study.experiments.losses_table import BUDGETS, TEACHERS, Comparison


def draw_costs(comparison: Comparison, title: str) -> Figure | None:
    """Columns: cost in time and in memory. Rows: the budgets that were run. Colours: the teachers.

    None where no loss has both a score and a cost.
    """
    base = comparison.baseline
    rows = [row for row in comparison.rows if row.seconds is not None]
    shown = [budget for budget in BUDGETS if any((end, budget) in row.gains for row in rows for end in TEACHERS)]
    if base.seconds is None or not shown:
        return None
    costs = {
        "time of a training step, x baseline": lambda row: row.seconds / base.seconds,
        "peak memory over the baseline, MB": lambda row: row.megabytes - base.megabytes,
    }
    figure, axes = plt.subplots(len(shown), 2, figsize=(11, 4.6 * len(shown)), layout="constrained", squeeze=False)
    for budget, line in zip(shown, axes, strict=True):
        for axis, (label, cost) in zip(line, costs.items(), strict=True):
            for i, (end, teacher) in enumerate(TEACHERS.items()):
                known = [row for row in rows if (end, budget) in row.gains]
                x, y = [cost(row) for row in known], [100 * row.gains[end, budget] for row in known]
                axis.plot(x, y, style.marker(i), color=style.color(i), label=teacher)
                for row, *place in zip(known, x, y, strict=True):
                    axis.annotate(row.loss, place, (3, 3), textcoords="offset points", fontsize=7, color=style.color(i))
            axis.axhline(0, color="0.6", linewidth=0.8)
            axis.set(title=BUDGETS[budget], xlabel=label, ylabel="gain over the baseline, points of mIoU")
            axis.margins(x=0.12)  # room for the names
    figure.suptitle(f"{title}: {len(comparison.seeds)} seed(s)", fontsize=11)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
