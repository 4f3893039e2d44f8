"""The checklist that a profile names, read from its files.

Belongs here: telling the two kinds of files apart, and one clear message for files that cannot be used. Does not
belong here: what the files hold (ml/checklist.py).
"""

from pathlib import Path

from ml.checklist import Checklist, UnusableChecklist, load_visionreward
from resources.backend_settings import ChecklistFiles
from resources.outcome import Unavailable


def load_checklist(source: ChecklistFiles | Path) -> Checklist:
    """The checklist of VisionReward's files, or of one file in JSON. Raises Unavailable where they cannot be used."""
    try:
        if isinstance(source, ChecklistFiles):
            return load_visionreward(source.questions, source.select, source.weights)
        return Checklist.from_json(source.read_text(encoding="utf-8"))
    except UnusableChecklist as error:
        raise Unavailable(f"{error} Check `checklist` in the profile.") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise Unavailable(f"cannot read the checklist {source}: {reason}. Check `checklist` in the profile.") from error
