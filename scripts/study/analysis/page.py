"""A report as one HTML page that needs no other file."""

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }}
nav a {{ margin-right: 1.2em; }}
h2 {{ margin-top: 2.2em; border-bottom: 1px solid #ddd; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
.wide {{ overflow-x: auto; }}
th, td {{ padding: .25em .8em; text-align: right; border-bottom: 1px solid #eee; }}
th:first-child, td:first-child {{ text-align: left; min-width: 14em; overflow-wrap: anywhere; }}
th {{ white-space: nowrap; }}
img {{ max-width: 100%; height: auto; display: block; margin: 1em 0; }}
</style>
<h1>{title}</h1>
<nav>{links}</nav>
{body}
</html>
"""


def html(text: str, pictures: Mapping[str, Sequence[Path]]) -> str:
    """The page of a report in markdown (headings, tables, lists, paragraphs), with PNG files below each heading.

    Headings of ``pictures`` that the report lacks come after its first section; its own keep their places.
    """
    title, *sections = re.split(r"^##? ", text.strip(), flags=re.MULTILINE)[1:]
    parts = {head.strip(): list(_blocks(body)) for head, _, body in (s.partition("\n") for s in sections)}
    scores = [head for head in parts if " checkpoint, " in head]
    order = [*scores, *(head for head in pictures if pictures[head]), *parts]
    body, links = [], []
    for number, head in enumerate(dict.fromkeys(order)):
        links.append(f'<a href="#s{number}">{escape(head.partition(" (")[0])}</a>')
        body.append(f'<h2 id="s{number}">{escape(head)}</h2>')
        body += parts.get(head, [])
        body += map(_image, pictures.get(head, ()))
    return PAGE.format(title=escape(title.strip()), links="\n".join(links), body="\n".join(body))


def _blocks(text: str) -> Iterator[str]:
    """Tables, lists and paragraphs of markdown as HTML."""
    for kind, group in groupby(text.strip().splitlines(), lambda line: line[:1] if line[:1] in "|-" else bool(line)):
        lines = list(group)
        if kind == "|":
            rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
            head, rest = rows[0], [row for row in rows[1:] if set("".join(row)) != {"-"}]
            cells = [_row("th", head), *(_row("td", row) for row in rest)]
            yield f'<div class="wide"><table>{"".join(cells)}</table></div>'
        elif kind == "-":
            yield "<ul>" + "".join(f"<li>{escape(line[2:])}</li>" for line in lines) + "</ul>"
        elif kind:
            yield f"<p>{escape(' '.join(lines))}</p>"


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _image(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(path.stem)}" src="data:image/png;base64,{data}">'
