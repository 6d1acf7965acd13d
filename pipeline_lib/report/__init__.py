"""Tables, charts and pages, each a pure function of a run's records and of a little material beside them.

rows.py         records to rows of text
charts.py       inline SVG
figures.py      records to charts
trees.py        search trees to pictures
flips.py        answers that changed
signatures.py   ways of failing, named when seen; sanity.py, what a single iteration tells
material.py     what a page shows besides the records
page.py         everything to one HTML file that opens without a network
summary.py      what it finds, in a few lines of Markdown
"""

from pipeline_lib.report.figures import figures_of
from pipeline_lib.report.material import Material
from pipeline_lib.report.page.render import render_page, render_plain
from pipeline_lib.report.summary import findings_markdown
from pipeline_lib.report.tables import IterationRow, records_table

__all__ = [
    "IterationRow",
    "Material",
    "figures_of",
    "findings_markdown",
    "records_table",
    "render_page",
    "render_plain",
]
