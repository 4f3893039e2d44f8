"""Publishing: a model folder and a dataset folder that are ready for the hub, made from one checkpoint's lineage.

Belongs here: what the folders hold, their cards, and their assets. Does not belong here: what licences mean
(resources/licences.py) or sending a folder anywhere (resources/hub.py).
"""
