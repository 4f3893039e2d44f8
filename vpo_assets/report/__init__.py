"""What people look at: pictures, tables and the evaluation report.

Belongs here: turning plain data (dataclasses, numbers, frames, text) into PNG bytes, Markdown, terminal
tables and one self-contained HTML page, with all text treated as untrusted. Does not belong here: reading the
lake, anything of Dagster, and the figures themselves (ml/metrics.py).
"""
