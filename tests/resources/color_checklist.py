"""A small checklist about colours, of another shape than VisionReward's: for rewards that ask a stub."""

from pathlib import Path

from ml.checklist import Checklist, Question

COLOR_CHECKLIST = Checklist(
    name="colors",
    version="3",
    questions=(
        Question("as_asked", 'Does the video show "[[prompt]]"?', "alignment", "alignment", 2.0),
        Question("as_told", "Is [[prompt]] what it shows?", "alignment", "alignment", 1.5),
        Question("red", "Is it mostly red?", "palette", "warm", 0.25),
        Question("green", "Is it mostly green?", "palette", "cold", 0.0),
        Question("blue", "Is it mostly blue?", "palette", "cold", 0.125),
    ),
)


def color_checklist_file(folder: Path) -> Path:
    """The checklist as a file in JSON."""
    file = folder / "colors.json"
    file.write_text(COLOR_CHECKLIST.to_json())
    return file
