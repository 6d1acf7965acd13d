"""A study: methods against each other over families and seeds, at equal budgets.

grid.py          what is run: methods, families, seeds, tries; a cell is one run of it
cell_result.py   what a cell came to, read from its summary
comparison.py    means over seeds, paired differences, and which try of a method is chosen
study_tables.py  the tables, as JSON and Markdown
study_page.py    the same as one page with figures
"""
