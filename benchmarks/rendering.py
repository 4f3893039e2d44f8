"""What the adapter costs and what its options bring: both sides in one run, as ratios.

    python benchmarks/rendering.py                          # the shapes model, on a CPU
    python benchmarks/rendering.py --model zai-org/CogVideoX-2b --dtype float16 --device cuda --batch 2 \\
        --arguments '{"num_frames": 49, "height": 480, "width": 720, "num_inference_steps": 50, "guidance_scale": 6.0}'

The plain side is a loop over the pipeline's own call, with the same prompts and seeds. Sides take turns, round by
round, and what is shown is the median round of each. On a CPU there is one thread, and seconds are those that it
computed: a machine that is busy with something else does not stretch them. A ratio above 1 means that the left side is
faster.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from resources.backend_settings import EMBEDDED, DiffusersSettings
from resources.diffusers_generator import SHAPES_MODEL, DiffusersVideoGenerator
from resources.outcome import Failed, Skipped
from resources.video_generator import Clip
from vpo_assets.report.tables import print_tables

SHAPES_ARGUMENTS = (
    '{"num_frames": 5, "height": 64, "width": 64, "num_inference_steps": 10, "guidance_scale": 3.0, '
    '"max_sequence_length": 64}'
)
COLORS = ("red", "blue", "green", "yellow")
MOTIONS = ("moves to the right", "stays still", "moves up", "moves to the left")

Side = Callable[[], Sequence[Clip]]


def rows(clips: int) -> tuple[list[str], list[int]]:
    """Prompts with two seeds each, as candidates have them."""
    prompts = [
        f"A {COLORS[i % 4]} ring {MOTIONS[i // 4 % 4]} in front of a dark background. Take {i // 16}."
        for i in range((clips + 1) // 2)
    ]
    return [prompts[i // 2] for i in range(clips)], list(range(clips))


def through_adapter(settings: DiffusersSettings, prompts: list[str], seeds: list[int]) -> Side:
    """The adapter with these settings, loaded and warm."""
    generator = DiffusersVideoGenerator(settings)
    generator.generate(prompts[: settings.batch_size], seeds[: settings.batch_size])

    def render() -> Sequence[Clip]:
        clips = generator.generate(prompts, seeds)
        failed = [clip.reason for clip in clips if isinstance(clip, Failed | Skipped)]
        assert not failed, failed[0]
        return [clip for clip in clips if not isinstance(clip, Failed | Skipped)]

    return render


def plain_loop(settings: DiffusersSettings, prompts: list[str], seeds: list[int], device: str) -> Side:
    """What one writes without the adapter: the pipeline in a loop, pixels as bytes."""
    import torch
    from diffusers import DiffusionPipeline

    model = SHAPES_MODEL if settings.model == EMBEDDED else settings.model
    pipeline = DiffusionPipeline.from_pretrained(
        model, revision=settings.revision, dtype=getattr(torch, settings.dtype)
    ).to(device)
    pipeline.set_progress_bar_config(disable=True)

    def batch(start: int) -> Any:
        part = slice(start, start + settings.batch_size)
        return pipeline(
            prompt=prompts[part],
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds[part]],
            output_type="np",
            **settings.arguments,
        ).frames

    def render() -> Sequence[Clip]:
        starts = range(0, len(prompts), settings.batch_size)
        return [(clip * 255).round().astype(np.uint8) for start in starts for clip in batch(start)]

    batch(0)
    return render


def compare(
    what: str, side: Side, against: Side, rounds: int, clock: Callable[[], float], same: bool = True
) -> dict[str, Any]:
    """The pace of both, and how many times faster the first one is; unless `same` is False, clips must be equal."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for count in range(rounds):
        results = []
        for number in (0, 1) if count % 2 == 0 else (1, 0):
            started = clock()
            results.append((side, against)[number]())
            seconds[number].append(clock() - started)
    apart = max(int(np.abs(a.astype(int) - b.astype(int)).max()) for a, b in zip(*results, strict=True))
    assert not same or apart <= 2, f"{what}: clips differ by {apart} levels"
    one, other = (statistics.median(taken) for taken in seconds)
    clips = len(results[0])
    return {
        "what": what,
        "clips/s": round(clips / one, 2),
        "against": round(clips / other, 2),
        "ratio": round(other / one, 3),
        "levels apart": apart,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--arguments", type=json.loads, default=json.loads(SHAPES_ARGUMENTS))
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", default="pab", help="a step cache to measure, or none")
    chosen = parser.parse_args()
    if chosen.device == "cpu":
        import torch

        torch.set_num_threads(1)
    base = DiffusersSettings(
        model=chosen.model,
        dtype=chosen.dtype,
        device=chosen.device,
        batch_size=chosen.batch,
        arguments=chosen.arguments,
    )
    prompts, seeds = rows(chosen.clips)
    adapter = through_adapter(base, prompts, seeds)
    single = base.model_copy(update={"batch_size": 1})
    adapter_single = through_adapter(single, prompts, seeds)
    plain_single = plain_loop(single, prompts, seeds, chosen.device)
    plain = plain_loop(base, prompts, seeds, chosen.device)
    clock = time.process_time if chosen.device == "cpu" else time.perf_counter
    batches, rounds = f"batches of {chosen.batch}", chosen.rounds
    table = [
        compare(f"adapter / loop, both in {batches}", adapter, plain, rounds, clock),
        compare("adapter / loop, both one by one", adapter_single, plain_single, rounds, clock),
        compare(f"adapter in {batches} / loop one by one", adapter, plain_single, rounds, clock),
    ]
    if chosen.cache != "none":
        cached = through_adapter(base.model_copy(update={"cache": chosen.cache}), prompts, seeds)
        what = f"adapter in {batches} with {chosen.cache} / loop one by one"
        table.append(compare(what, cached, plain_single, rounds, clock, same=False))
    print_tables({f"Rendering with {chosen.model} on {chosen.device}": table})


if __name__ == "__main__":
    main()
