"""The optimizer inside a call of a diffusers pipeline, as its users write it."""

from pathlib import Path

import numpy as np
import pytest

from ml import templates
from resources.backend_settings import SamplingSettings
from resources.diffusers_generator import SHAPES_MODEL
from resources.optimizer_settings import OPTIMIZER_FILE, OptimizerSettings
from resources.prompt_optimizer import PromptOptimizer
from tests.resources.scripted_model import ScriptedModel
from tests.tiny_model import save_tiny_model

RED = "A red ring moves to the left in front of a dark background. The footage has a steady camera and sharp focus."
BLUE = "A large blue square stays still in front of a light background. There is no motion at all."


@pytest.mark.slow
def test_the_drop_in_gives_a_pipeline_its_prompts(tmp_path: Path) -> None:
    import torch
    from diffusers import CogVideoXPipeline

    pipe = CogVideoXPipeline.from_pretrained(SHAPES_MODEL)
    pipe.set_progress_bar_config(disable=True)

    def filmed(prompt: str | list[str]) -> np.ndarray:
        count = 1 if isinstance(prompt, str) else len(prompt)
        result = pipe(
            prompt=prompt,
            num_frames=5,
            height=64,
            width=64,
            num_inference_steps=4,
            guidance_scale=3.0,
            max_sequence_length=64,
            generator=[torch.Generator().manual_seed(1) for _ in range(count)],
            output_type="np",
        )
        return np.asarray(result.frames)

    prompts = {"ruby hoop heads west": RED, "big azure box": BLUE}
    settings = OptimizerSettings(name="scripted", template=templates.load("optimize").source)
    optimizer = PromptOptimizer(ScriptedModel(lambda query, before: prompts[query]), settings)
    one = filmed(optimizer("ruby hoop heads west"))
    assert one.shape == (1, 5, 64, 64, 3)
    assert np.array_equal(one, filmed(RED))
    assert not np.array_equal(one, filmed("ruby hoop heads west"))
    both = filmed(optimizer(["ruby hoop heads west", "big azure box"]))
    assert both.shape == (2, 5, 64, 64, 3)
    assert np.allclose(both[0], one[0], atol=0.02)
    assert not np.allclose(both[0], both[1], atol=0.2)

    # The same from a model's folder alone.
    save_tiny_model(tmp_path)
    short = OptimizerSettings(
        name="tiny", template=settings.template, dtype="float32", sampling=SamplingSettings(max_new_tokens=8)
    )
    (tmp_path / OPTIMIZER_FILE).write_text(short.model_dump_json())
    assert filmed(PromptOptimizer.from_folder(tmp_path)("ruby hoop heads west")).shape == (1, 5, 64, 64, 3)
