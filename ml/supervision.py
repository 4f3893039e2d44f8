"""Whoever a training reports to, and is asked to end by: the process that started it, by default.

Belongs here: what a training tells while it runs and how it hears that it is to end. Does not belong here: the training
(ml/fine_tuning.py), and the other kinds of supervisor (resources/ray_training_worker.py).
"""

import json
import signal
import sys
from typing import Any, Protocol

PROGRESS_MARK = "vpo-progress "
FAILURE_MARK = "vpo-failure "
INTERRUPTED = 128 + signal.SIGTERM
"""Exit status of a training that was asked to end: its state is saved, and there is no model."""


class Supervisor(Protocol):
    """What a training needs of whoever runs it. `progress` is called in its first process, the rest in each."""

    def progress(self, figures: dict[str, float]) -> None:
        """A step was logged."""

    def listen(self) -> None:
        """From here on a training that is asked to end does so after its step, with a state saved."""

    def end_is_asked(self) -> bool:
        """Whether this process was asked."""

    def stop_listening(self) -> None:
        """The steps are over."""


class ParentProcess:
    """The process that started this one: it reads lines from the standard output, and asks by SIGTERM.

    Before and after the steps SIGTERM ends the process at once, as ever.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: Any = signal.SIG_DFL

    def progress(self, figures: dict[str, float]) -> None:
        tell(PROGRESS_MARK, figures)

    def listen(self) -> None:
        def ask(*_: object) -> None:
            self._asked = True

        self._before = signal.signal(signal.SIGTERM, ask)

    def end_is_asked(self) -> bool:
        return self._asked

    def stop_listening(self) -> None:
        signal.signal(signal.SIGTERM, self._before)


def tell(mark: str, what: object) -> None:
    """One line for whoever started the process."""
    sys.stdout.write(f"{mark}{json.dumps(what)}\n")
    sys.stdout.flush()
