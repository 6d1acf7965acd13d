"""Tables, figures and pages, each a pure function of a run's records.

rows.py      records to rows of text
figures.py   records to plotly figures
page.py      everything to one HTML file that opens without a network
"""

from pipeline_lib.report.figures import figures_of
from pipeline_lib.report.page import render_figures, render_page
from pipeline_lib.report.rows import IterationRow, records_table

__all__ = ["IterationRow", "figures_of", "records_table", "render_figures", "render_page"]
