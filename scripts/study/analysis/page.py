"""A report as one HTML page that needs no other file."""

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from markdown import markdown

FOLDED_FROM = 4  # pictures below one heading


class Picture(NamedTuple):
    """A PNG file, and what is to be seen in it."""

    path: Path
    caption: str


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }}
nav a {{ margin-right: 1.2em; }}
h2 {{ margin-top: 2.2em; border-bottom: 1px solid #ddd; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .25em .8em; text-align: left; vertical-align: top; border-bottom: 1px solid #eee; }}
th:first-child, td:first-child {{ min-width: 14em; overflow-wrap: anywhere; }}
figure {{ margin: 1.5em 0; }}
img {{ max-width: 100%; height: auto; display: block; }}
figcaption {{ margin-top: .4em; max-width: 50em; }}
</style>
<h1>{title}</h1>
<nav>{links}</nav>
{body}
</html>
"""


def make_html_page(text: str, pictures: Mapping[str, Sequence[Picture]]) -> str:
    """Return the page of a report in markdown (headings, tables, lists, paragraphs), with pictures below its headings.

    pictures: by heading. The report's scores come first, then the headings with pictures in the order of ``pictures``,
    and then what is left of the report.
    """
    _, title, *sections = re.split(r"^##? ", text.strip(), flags=re.MULTILINE)
    parts = {}
    for section in sections:
        head, _, content = section.partition("\n")
        parts[head.strip()] = markdown(escape(content, quote=False), extensions=["tables"])
    heads_of_scores = [head for head in parts if " checkpoint, " in head]
    heads_of_pictures = [head for head in pictures if pictures[head]]
    each_once = dict.fromkeys([*heads_of_scores, *heads_of_pictures, *parts])
    body = []
    links = []
    for number, head in enumerate(each_once):
        links.append(f'<a href="#s{number}">{escape(head)}</a>')
        body.append(f'<h2 id="s{number}">{escape(head)}</h2>')
        body.append(parts.get(head, ""))
        body.append(format_pictures(pictures.get(head, ())))
    return PAGE.format(title=escape(title.strip()), links="\n".join(links), body="\n".join(body))


def format_pictures(pictures: Sequence[Picture]) -> str:
    """Return the HTML of the pictures below a heading. Many are folded away behind a line to click."""
    shown = "\n".join(map(format_picture, pictures))
    if len(pictures) <= FOLDED_FROM:
        return shown
    return f"<details><summary>{len(pictures)} pictures</summary>\n{shown}\n</details>"


def format_picture(picture: Picture) -> str:
    """Return the HTML of a picture with its caption. The file's content becomes a part of the page."""
    data = base64.b64encode(picture.path.read_bytes()).decode()
    image = f'<img alt="{escape(picture.path.stem)}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{escape(picture.caption)}</figcaption></figure>"
