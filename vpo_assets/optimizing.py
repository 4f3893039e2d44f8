"""A trained prompt optimizer at work on a single query.

Belongs here: rewriting a query as training taught it. Does not belong here: rewriting many for the graph (writing.py)
or choosing a checkpoint (evaluation_tables.py).
"""

from ml.curation import clean, parse_tags
from ml.parsing import strip_introduction
from resources.outcome import Failed, Skipped
from storage.ids import content_id
from vpo_assets.platform import Platform
from vpo_assets.report.plain_text import one_line


class UnusableQuery(ValueError):
    """A query with nothing to optimize in it."""


class NoCheckpoint(ValueError):
    """What was given as the id of a checkpoint can be none."""


class PromptOptimizer:
    """One checkpoint, loaded when it is first used. Sampled as in the target's evaluation, with the same seed for the
    same query, so that an answer can be had again."""

    def __init__(self, platform: Platform, target: str, checkpoint_id: str) -> None:
        self._platform = platform
        self._checkpoint_id = checkpoint_id
        try:
            self._policy = platform.policy(checkpoint_id)
        except ValueError as error:
            raise NoCheckpoint(str(error)) from error
        self._sampling = platform.target(target).evaluation.sampling.sampling()
        self._template = platform.template("optimize")

    def optimize(self, query: str) -> str:
        """The prompt, in one line. Tags (`-ar 16:9`) are for the video model's settings, and left out.

        Raises UnusableQuery, BrokenCheckpoint, Unavailable.
        """
        text, _ = parse_tags(clean(query))
        if not text.strip():
            raise UnusableQuery(f"there is nothing to optimize in {one_line(query, 80)!r}")
        seed = int(content_id(text, self._checkpoint_id, str(self._platform.profile.seed))[:12], 16)
        (reply,) = self._policy.generate([self._template.messages(query=text)], self._sampling, [seed])
        if isinstance(reply, Failed | Skipped):
            raise UnusableQuery(reply.reason)
        return one_line(strip_introduction(reply.text))
