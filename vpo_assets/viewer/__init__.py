"""The viewer: preference pairs, the evaluation's clips, training and votes of people, in a browser.

Belongs here: reading what is looked at, pages, the folder they are exported to, blind votes. Does not belong here:
anything of Dagster, and the statistics (ml). Starlette and Jinja, which Dagster brings: Gradio 6 wants an older Pillow.
"""
