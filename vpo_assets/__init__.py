"""The method as a graph of Dagster assets: what is made from what.

Belongs here: assets, their checks, automation, and the commands and reports around them. Does not belong here:
models and rewards (resources), the science (ml), or how rows are kept (storage).
"""
