"""The figures that the VPO paper publishes (arXiv 2503.20491, ICCV 2025), to be printed beside one's own.

Belongs here: numbers as they are reported, with what they were measured on. Does not belong here: any figure of
this project.
"""

SOURCE = "VPO, arXiv 2503.20491 (ICCV 2025)"

TEXT_LEVEL_QUERIES = 500
TEXT_LEVEL: tuple[tuple[str, tuple[float, float, float, float]], ...] = (
    ("GLM-4 few-shot", (83.4, 5.4, 10.0, 1.2)),
    ("GPT-4o few-shot", (86.4, 2.4, 8.6, 2.6)),
    ("VPO-SFT", (93.8, 0.8, 5.4, 0.0)),
    ("VPO (CogVideoX-2B)", (94.6, 0.6, 4.8, 0.0)),
    ("VPO (CogVideoX-5B)", (94.8, 0.4, 4.8, 0.0)),
)
"""Method, then per cent aligned, unsafe, imprecise, refusal."""

ABLATION = (("VPO", 4.15), ("VPO without text-level feedback", 4.12))
"""Method, then the overall score of CogVideoX-5B."""
OTHER_VIDEO_MODEL = (("human action", 88.80, 97.00), ("multiple objects", 55.99, 67.88), ("overall", None, 3.18))
"""Open-Sora 1.2: metric, the original query's value as far as it is published, VPO's."""
HUMAN_EVALUATION = (("the original query", 37.5), ("the video model's own prompt rewriter", 14.0))
"""CogVideoX-5B: VPO against what, and points of win rate."""

VIDEO_LEVEL_METRICS = (
    "overall, CogVideoX-2B",
    "overall, CogVideoX-5B",
    "human action",
    "scene",
    "multiple objects",
    "appearance style",
)
VIDEO_LEVEL: tuple[tuple[str, tuple[float, ...]], ...] = (
    ("Original query", (3.27, 3.77, 80.00, 28.34, 40.17, 22.60)),
    ("GLM-4 few-shot", (3.57, 3.98, 96.20, 55.51, 68.40, 23.47)),
    ("GPT-4o few-shot", (3.58, 4.03, 98.20, 52.53, 63.63, 23.73)),
    ("VPO-SFT", (3.59, 4.01, 97.00, 55.04, 68.98, 24.13)),
    ("VPO", (3.76, 4.15, 99.00, 55.83, 70.17, 24.20)),
)
"""Method, then a value per metric. Overall is VisionReward's on MonetBench; the last four are VBench's with
CogVideoX-2B."""
