"""What the assets are backed by: models, judges, rewards, trainers, compute, and the settings that pick them.

Belongs here: one small interface a kind of resource, and its backends. Does not belong here: the graph of
assets, or anything of Dagster's.
"""
