"""A report as one HTML page that needs no other file."""

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from markdown import markdown

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }}
nav a {{ margin-right: 1.2em; }}
h2 {{ margin-top: 2.2em; border-bottom: 1px solid #ddd; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto; }}
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
    texts = {head.strip(): body for head, _, body in (section.partition("\n") for section in sections)}
    parts = {head: markdown(escape(body, quote=False), extensions=["tables"]) for head, body in texts.items()}
    scores = [head for head in parts if " checkpoint, " in head]
    order = [*scores, *(head for head in pictures if pictures[head]), *parts]
    body, links = [], []
    for number, head in enumerate(dict.fromkeys(order)):
        links.append(f'<a href="#s{number}">{escape(head.partition(" (")[0])}</a>')
        body.append(f'<h2 id="s{number}">{escape(head)}</h2>')
        body.append(parts.get(head, ""))
        body += map(_image, pictures.get(head, ()))
    return PAGE.format(title=escape(title.strip()), links="\n".join(links), body="\n".join(body))


def _image(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(path.stem)}" src="data:image/png;base64,{data}">'
