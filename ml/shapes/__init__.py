"""The embedded world of moving shapes: a text-to-video problem small enough for a laptop.

Belongs here: scenes and their renderer, the words that captions and users choose, the tiny video model's
architecture and training, and the measurements that read a clip's pixels. Does not belong here: anything
that other target models need; they come in through the same interfaces from outside this folder.
"""
