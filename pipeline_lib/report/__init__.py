"""Tables, charts and pages, each a pure function of a run's records and of a little material beside them.

metrics.py      records to flat metrics under paths, and the configuration to flat parameters
tables.py       records to rows of text
charts.py       axes, lines, bars as inline SVG
figures.py      records to charts
flips.py        test answers that changed between right and wrong
signatures.py   ways of failing, named when a run shows them
sanity.py       what a run of a single iteration can show
material.py     what a page shows besides the records
summary.py      findings as a few lines of Markdown, for the flow run's page
tree_choice.py  which few of an iteration's trees are worth a look
notes.py        descriptions of runs and versions as Markdown, for MLflow's pages
page/           everything as one HTML file that opens without a network; its tree pictures
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
