"""What a study runs beside whole runs: its cells, and methods from outside.

cells.py   one cell: the command that a user would type, in a process of its own
"""
