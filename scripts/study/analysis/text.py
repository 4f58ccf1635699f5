"""Numbers and tables as text."""

import textwrap
from statistics import mean, stdev


def format_percent(value: float | None, digits: int = 2) -> str:
    """Show a fraction in percent; a score that is not defined or was not measured is a dash."""
    return "-" if value is None else f"{100 * value:.{digits}f}"


def format_mean_std(values: list[float], sign: str = "", scale: float = 100, digits: int = 2) -> str:
    """Show ``mean ± standard deviation``, fractions in percent; one value has no ±.

    sign: "+" for differences. scale: 1 for numbers that are no fractions.
    """
    text = f"{scale * mean(values):{sign}.{digits}f}"
    if len(values) > 1:
        text += f" ± {scale * stdev(values):.{digits}f}"
    return text


def wrap_text(text: str, width: int = 26) -> str:
    """Break a text into lines of at most ``width`` characters, as in the title of a narrow column."""
    return "\n".join(textwrap.wrap(text, width))


def format_markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    cells = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells) + "\n"
