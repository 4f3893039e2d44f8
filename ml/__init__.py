"""The science of the platform: plain functions on plain tables.

Belongs here: curation, templates, parsing, checklists, pair selection, metrics, the training scripts and
the embedded `shapes` world. Does not belong here: Dagster, the lake, profiles, or the choice of a backend.
"""
