"""The backend that renders with a diffusers pipeline in this process.

Belongs here: loading any text-to-video pipeline, calling it in batches, and what becomes of its frames. Does not
belong here: the call's arguments (pipeline_arguments.py), what makes it faster or smaller (pipeline_options.py), or
what is rendered.
"""

import contextlib
import gc
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resources.backend_settings import EMBEDDED, DiffusersSettings
from resources.embedded_video_models import EMBEDDED_VIDEO_MODELS
from resources.fingerprint import folder_fingerprint
from resources.language_model import Identity
from resources.outcome import Failed, Outcome, Unavailable
from resources.pipeline_arguments import Call, call_of, check_names
from resources.pipeline_options import check_options, identity_of_options, options_in_force, rows_at_once, switch_on
from resources.prompt_embeddings import EmbeddingsOnce
from resources.video_generator import Clip

SHAPES_MODEL = EMBEDDED_VIDEO_MODELS[EMBEDDED]


class DiffusersVideoGenerator:
    """Any text-to-video pipeline of diffusers.

    A prompt and a seed give the same clip, whatever else is asked for in the same call: noise is drawn on the CPU by
    each row's own generator, and texts are encoded one by one. What a batch can still move is the rounding of sums.
    """

    def __init__(self, settings: DiffusersSettings, transformer: Path | None = None) -> None:
        """`transformer`: the folder of one that takes the place of the pipeline's own."""
        self.settings = settings
        self._transformer = transformer
        self.fps = settings.fps
        self._loaded: _Loaded | None = None

    def identity(self) -> Identity:
        settings = self.settings
        folder = _folder_of(settings)
        negative: Identity = {} if settings.negative_prompt is None else {"negative_prompt": settings.negative_prompt}
        return {
            "backend": settings.backend,
            "model": settings.model,
            "revision": folder_fingerprint(folder) if folder else settings.revision,
            "dtype": settings.dtype,
            **{f"argument {name}": value for name, value in sorted(settings.arguments.items())},
            **negative,
            **identity_of_options(settings),
        }

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Outcome[Clip]]:
        """One clip a prompt, in order. Clips with pixels that are not finite, or too large for the memory, are Failed.

        Raises Unavailable for a model that cannot be loaded, and for settings that it cannot work with.
        """
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many seeds, not {len(seeds)}")
        if not prompts:
            return []
        loaded = self._load()
        outcomes: dict[int, Outcome[Clip]] = {}
        waiting = deque(_equal_prompts_together(prompts))
        try:
            while waiting:
                rows = [waiting.popleft() for _ in range(min(loaded.rows_at_once, len(waiting)))]
                clips = self._render(loaded, [_encodable(prompts[i]) for i in rows], [seeds[i] for i in rows])
                if clips is not None:
                    outcomes.update(zip(rows, clips, strict=True))
                elif len(rows) > 1:
                    loaded.rows_at_once = len(rows) // 2
                    waiting.extendleft(reversed(rows))
                else:
                    outcomes[rows[0]] = Failed(
                        "the memory does not suffice for a single clip: set video_generator.offload, vae_tiling or "
                        "layerwise_casting, or fewer frames or a smaller size in its arguments"
                    )
        finally:
            loaded.texts_forget()
        return [outcomes[i] for i in range(len(prompts))]

    def close(self) -> None:
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            return
        import torch

        # Hooks tie a pipeline's parts into circles.
        loaded.pipeline.remove_all_hooks()
        del loaded
        if self.settings.compile:
            torch.compiler.reset()
        _free_memory()

    def _render(self, loaded: "_Loaded", prompts: list[str], seeds: list[int]) -> list[Outcome[Clip]] | None:
        """The clips of one batch; None if the memory did not suffice."""
        import torch

        given: dict[str, Any] = dict(loaded.call.arguments)
        if self.settings.negative_prompt is not None:
            # As a list: several pipelines take a single text for one row only.
            given["negative_prompt"] = [self.settings.negative_prompt] * len(prompts)
        trouble, whole = None, False
        try:
            frames = loaded.pipeline(
                prompt=prompts,
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
                output_type="np",
                **given,
            ).frames
            loaded.proven = whole = True
            return [self._outcome(loaded, clip) for clip in np.asarray(frames)]
        except Exception as error:
            options = options_in_force(self.settings)
            if not _is_out_of_memory(error):
                if loaded.proven or not options or isinstance(error, Unavailable):
                    raise
                trouble = (
                    f"{type(loaded.pipeline).__name__} cannot render its first clip with {', '.join(options)} in "
                    f"video_generator: {(str(error).splitlines() or [type(error).__name__])[0]}"
                )
        finally:
            if not whole:  # the call broke off, and left parts on the GPU and caches of its steps behind
                loaded.pipeline.maybe_free_model_hooks()
        if trouble is not None:
            raise Unavailable(trouble)
        _free_memory()  # here, as within the handler the error still held the tensors of the batch
        return None

    def _outcome(self, loaded: "_Loaded", clip: Any) -> Outcome[Clip]:
        """Pixels between 0 and 1 as bytes."""
        call = loaded.call
        expected = (call.frames, call.height, call.width, 3)
        if any(wanted not in (None, found) for wanted, found in zip(expected, clip.shape, strict=True)):
            tiling = ", which vae_tiling may do with small clips" if self.settings.vae_tiling else ""
            raise Unavailable(
                f"{type(loaded.pipeline).__name__} makes clips of {'x'.join(map(str, clip.shape[:3]))} (frames, "
                f"height, width) where {'x'.join(map(str, expected[:3]))} is set in "
                f"video_generator.arguments{tiling}"
            )
        if not np.isfinite(clip).all():
            return Failed(
                f"{self.settings.model} gave pixels that are not finite; another dtype than {self.settings.dtype} "
                "may help"
            )
        pixels: Clip = np.clip(np.rint(clip * 255), 0, 255).astype(np.uint8)
        return pixels

    def _load(self) -> "_Loaded":
        if self._loaded is None:
            settings = self.settings
            device = _device(settings.device)
            check_options(settings, device)
            pipeline = self._pipeline()
            call = call_of(pipeline, settings.arguments, settings.negative_prompt)
            pipeline.set_progress_bar_config(disable=True)
            self._switch_on(pipeline, device)
            self._loaded = _Loaded(pipeline, call, rows_at_once(settings))
        return self._loaded

    def _switch_on(self, pipeline: Any, device: str) -> None:
        try:
            switch_on(pipeline, self.settings, device)
        except Exception as error:
            if not _is_out_of_memory(error):
                raise
            raise Unavailable(
                f"the video model {self.settings.model} does not fit into the memory of {device}: set "
                "video_generator.offload, layerwise_casting or a smaller dtype"
            ) from error

    def _pipeline(self) -> Any:
        """The pipeline on the CPU, of a class that takes the profile's arguments."""
        import diffusers
        import torch

        settings = self.settings
        where, revision = pipeline_source(settings), settings.revision
        if settings.model in EMBEDDED_VIDEO_MODELS and not (Path(where) / "model_index.json").is_file():
            raise Unavailable(
                f"the weights of {settings.model} are not in {where}: docs/shapes.md says how to train them"
            )
        dtype = getattr(torch, settings.dtype)
        try:
            with _no_progress_bars():
                config = diffusers.DiffusionPipeline.load_config(where, revision=revision)
                pipeline_class = getattr(diffusers, str(config.get("_class_name")))
                check_names(pipeline_class, settings.arguments, settings.negative_prompt)
                parts = {} if self._transformer is None else {"transformer": _transformer(self._transformer, dtype)}
                return pipeline_class.from_pretrained(
                    where, revision=revision, dtype=dtype, use_safetensors=True, **parts
                )
        except (OSError, ValueError, ImportError, AttributeError) as error:
            first_line = (str(error).splitlines() or [type(error).__name__])[0]
            raise Unavailable(
                f"the video model {settings.model} cannot be loaded: {first_line}; name a folder or a hub model in "
                "targets.*.video_generator.model"
            ) from error


class _Loaded:
    """A pipeline that is ready to be called."""

    def __init__(self, pipeline: Any, call: Call, rows_at_once: int) -> None:
        self.pipeline = pipeline
        self.call = call
        self.rows_at_once = rows_at_once  # halved when the memory does not suffice
        self.proven = False  # it has rendered with these options
        self._texts = EmbeddingsOnce.remembered_by(pipeline)

    def texts_forget(self) -> None:
        """Free the embeddings of the texts."""
        if self._texts is not None:
            self._texts.forget()


def pipeline_source(settings: DiffusersSettings) -> str:
    """Folder or hub name that the pipeline is loaded from."""
    return str(_folder_of(settings) or settings.model)


def _folder_of(settings: DiffusersSettings) -> Path | None:
    if settings.model in EMBEDDED_VIDEO_MODELS:
        return EMBEDDED_VIDEO_MODELS[settings.model]
    folder = Path(settings.model)
    return folder if folder.is_dir() else None


def _transformer(folder: Path, dtype: Any) -> Any:
    """A transformer that was saved alone, of the class that its configuration names."""
    import diffusers

    return diffusers.AutoModel.from_pretrained(str(folder), dtype=dtype, use_safetensors=True)


def _device(wanted: str) -> str:
    import torch

    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"


def _equal_prompts_together(prompts: Sequence[str]) -> list[int]:
    """Row numbers in an order in which the rows of a prompt, which differ by their seeds, follow each other."""
    first: dict[str, int] = {}
    for row, prompt in enumerate(prompts):
        first.setdefault(prompt, row)
    return sorted(range(len(prompts)), key=lambda row: (first[prompts[row]], row))


def _encodable(prompt: str) -> str:
    """The prompt as a tokenizer can read it: half a surrogate pair, which no encoding has, is replaced."""
    return prompt.encode("utf-8", errors="replace").decode("utf-8")


def _is_out_of_memory(error: Exception) -> bool:
    import torch

    # On a CPU, torch says it with an error of the general kind.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Load without progress bars, which the logs of a run would be full of."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    shown = [library for library in (of_diffusers, of_transformers) if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()
