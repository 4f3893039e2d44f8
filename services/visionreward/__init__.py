"""A reward model of videos in an environment of its own, behind HTTP: see README.md."""
