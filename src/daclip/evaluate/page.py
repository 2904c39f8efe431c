"""One HTML page that stands alone: tables, plots as SVG, pictures as data; no script, nothing fetched."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from importlib.util import find_spec

from daclip import image
from daclip.evaluate.classification import Classification
from daclip.evaluate.sheet import Panel, Picture, zoomed
from daclip.evaluate.tables import Row, Table

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 13px; display: block; overflow-x: auto; }
th, td { padding: 2px 9px; text-align: right; white-space: nowrap; border-bottom: 1px solid #ddd; }
th { border-bottom: 2px solid #888; }
td.words, th.words { text-align: left; }
tr.strong td { font-weight: 600; background: #f3f6fa; }
figure { display: inline-block; margin: 0.6rem; vertical-align: top; }
figcaption { font-size: 12px; color: #555; }
img { max-width: 100%; } svg { max-width: 100%; height: auto; }
p.facts { font-size: 13px; color: #555; margin: 0; }
""".strip()


def page(
    *,
    title: str,
    facts: Sequence[str],
    tables: Sequence[Table],
    figures: Mapping[str, str],
    panels: Sequence[Panel] = (),
) -> str:
    """The page.

    Args:
        title: heading.
        facts: lines that say where the figures are from.
        tables: each under its own title.
        figures: SVG elements by what they show.
        panels: pictures of some photos; each is shown with its busiest part, enlarged.
    """
    parts = [f"<h1>{escape(title)}</h1>", *(f'<p class="facts">{escape(line)}</p>' for line in facts)]
    parts += [_table(table) for table in tables]
    if figures:
        parts.append("<h2>Plots</h2>")
        parts += [
            f"<figure>{svg}<figcaption>{escape(name)}</figcaption></figure>" for name, svg in figures.items()
        ]
    if panels:
        parts.append("<h2>Pictures</h2><p>Under each photo a part of it, enlarged.</p>")
        parts += [_panel(panel) for panel in panels]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style></head>\n<body>\n{body}\n</body>\n</html>"
    )


def _table(table: Table) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=words' if column < table.words else ''}>{escape(cell)}</{tag}>"
            for column, cell in enumerate(cells)
        )

    rows = [
        f"<tr{' class=strong' if number in table.strong else ''}>{line(cells, 'td')}</tr>"
        for number, cells in enumerate(table.lines)
    ]
    heading = f"<h2>{escape(table.title)}</h2>" if table.title else ""
    notes = "".join(f'<p class="facts">{escape(note)}</p>' for note in table.notes)
    return f"{heading}<table><tr>{line(table.head, 'th')}</tr>{''.join(rows)}</table>{notes}"


def _panel(panel: Panel) -> str:
    figures = [
        f'<figure><img alt="{escape(words)}" src="data:image/jpeg;base64,{_jpeg(zoomed(panel, number))}">'
        f"<figcaption>{escape(words)}</figcaption></figure>"
        for number, (words, _) in enumerate(panel.pictures)
    ]
    return f"<h3>{escape(panel.title)}</h3><div>{''.join(figures)}</div>"


def _jpeg(pixels: Picture) -> str:
    return b64encode(image.to_bytes(image.from_array(pixels), pixels, format="jpeg", quality=88)).decode()


def figures_of(rows: Sequence[Row], classifications: Sequence[Classification]) -> dict[str, str]:
    """The plots of some results as SVG by name; none where the extra [plots] is not installed."""
    if find_spec("matplotlib") is None:
        return {}
    from daclip.evaluate import plots

    return {
        name.replace("-", ": ", 1): plots.as_svg(figure)
        for name, figure in plots.of_results(rows, classifications).items()
    }
