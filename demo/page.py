"""The demo's page: one HTML file that shows the tables, pictures and records, and links the files beside it."""

from __future__ import annotations

import base64
import dataclasses
import html
from collections.abc import Sequence
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Section:
    """What is shown of one side: a heading, its picture, its run record as text."""

    heading: str
    picture: Path
    command: str
    record: str


_STYLE = """
:root { color-scheme: light dark; --ink: #1d232b; --soft: #5a6573; --line: #dfe4ea; --paper: #ffffff; --ground: #f4f6f9;
  --accent: #2a6f97; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebf0; --soft: #9aa5b3; --line: #2c333d; --paper: #1b2027;
  --ground: #12161b; --accent: #7cc4e8; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 2.2rem 1.2rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .7rem; }
p { max-width: 46rem; }
.lead, figcaption, .note { color: var(--soft); }
figure, table, details { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; }
figure { margin: 0; overflow: hidden; }
figure img { display: block; width: 100%; }
figcaption { padding: .6rem .9rem; font-size: .9rem; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: separate; border-spacing: 0; width: 100%; overflow: hidden; }
th, td { padding: .5rem .9rem; text-align: right; font-variant-numeric: tabular-nums; }
th { font-size: .85rem; color: var(--soft); font-weight: 600; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
tbody tr td { border-top: 1px solid var(--line); }
details { margin-top: .7rem; padding: .6rem .9rem; }
summary { cursor: pointer; }
pre { overflow-x: auto; font-size: .8rem; line-height: 1.45; }
code { font-family: ui-monospace, monospace; }
a { color: var(--accent); }
"""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table; the first two columns are text, the others numbers."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def write(
    path: Path, title: str, lead: str, tables: Sequence[tuple[str, str, str]], sections: Sequence[Section],
    files: Sequence[tuple[Path, str]],
) -> None:  # fmt: skip
    """Write the page.

    Args:
        path: the HTML file.
        title, lead: heading and the sentences under it.
        tables: heading, HTML of the table, note under it.
        sections: one a side.
        files: what lies beside the page, and what it is.
    """
    parts = [f"<h1>{html.escape(title)}</h1>", f'<p class="lead">{html.escape(lead)}</p>']
    for heading, content, note in tables:
        parts += [f"<h2>{html.escape(heading)}</h2>", content, f'<p class="note">{html.escape(note)}</p>']
    for section in sections:
        picture = base64.b64encode(section.picture.read_bytes()).decode("ascii")
        heading = html.escape(section.heading)
        parts += [
            f"<h2>{heading}</h2>",
            f'<figure><img alt="{heading}, three planes with the segmentation" src="data:image/png;base64,{picture}">'
            f"<figcaption><code>{html.escape(section.command)}</code></figcaption></figure>",
            f"<details><summary>Run record</summary><pre>{html.escape(section.record)}</pre></details>",
        ]
    rows = [
        f'<tr><td><a href="{html.escape(file.name)}">{html.escape(file.name)}</a></td><td>{html.escape(what)}</td></tr>'
        for file, what in files
    ]
    parts += ["<h2>Files</h2>", f'<div class="wide"><table><tbody>{"".join(rows)}</tbody></table></div>']
    path.write_text(
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{html.escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n" + "\n".join(parts) + "\n</main>\n</body>\n</html>\n",
        encoding="utf-8",
    )
