"""The backend that runs a language model with vLLM, whose engine works in a process of its own.

Belongs here: starting the engine, handing it whole batches, and ending it. Does not belong here: anything about what
is asked, or a vLLM that runs as a server (endpoint_model.py).
"""

import gc
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resources.backend_settings import VllmModelSettings
from resources.language_model import Conversation, Identity, JsonSchema, Reply, Sampling
from resources.outcome import Failed, Outcome, Unavailable

# What vLLM is told by the environment, where the user has not said otherwise: no log line for every start-up stage,
# and no report of the machine and the model to vLLM's makers.
_ENVIRONMENT = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}


class VllmLanguageModel:
    """A language model in vLLM. Rows are drawn by their own seeds, and share what their conversations begin with.

    A seed gives the same reply wherever the same rows are asked together. Other company changes sums in the last
    digit, and now and then a token with it.
    """

    def __init__(self, settings: VllmModelSettings, path: str | Path, name: str) -> None:
        self.settings = settings
        self.path = path
        self.name = name
        self._engine: Any = None
        self._watch: subprocess.Popen[bytes] | None = None

    def identity(self) -> Identity:
        settings = self.settings
        return {
            "backend": "vllm",
            "model": self.name,
            "revision": settings.revision,
            "dtype": settings.dtype,
            "quantization": settings.quantization,
        }

    def generate(
        self,
        conversations: Sequence[Conversation],
        sampling: Sampling,
        seeds: Sequence[int],
        *,
        schema: JsonSchema | None = None,
    ) -> list[Outcome[Reply]]:
        if len(seeds) != len(conversations):
            raise ValueError(f"{len(conversations)} conversations need as many seeds, not {len(seeds)}")
        if not conversations:
            return []
        engine = self._load()
        lengths = _prompt_lengths(engine, conversations)
        window = engine.model_config.max_model_len
        outcomes: list[Outcome[Reply]] = [_too_long(length, sampling, window) for length in lengths]
        fitting = [row for row, length in enumerate(lengths) if length + sampling.max_new_tokens <= window]
        answers = self._chat(
            engine,
            [list(conversations[row]) for row in fitting],
            _sampling_params(sampling, [seeds[row] for row in fitting], schema),
        )
        for row, answer in zip(fitting, answers, strict=True):
            outcomes[row] = _reply(answer)
        return outcomes

    def close(self) -> None:
        if self._engine is None:
            return
        engine, self._engine = self._engine, None
        # Ends the engine's process, and with it everything that the model held on the GPU.
        engine.llm_engine.engine_core.shutdown()
        del engine
        gc.collect()
        if self._watch is not None:
            self._watch.kill()  # before its pipe is closed, which it would take for an order
            self._watch.communicate()
            self._watch = None

    def _chat(self, engine: Any, conversations: list[Any], params: list[Any]) -> list[Any]:
        """vLLM's answers, in order."""
        from vllm.v1.engine.exceptions import EngineDeadError

        if not conversations:
            return []
        try:
            answers: list[Any] = engine.chat(conversations, params, use_tqdm=False)
        except EngineDeadError as error:
            self.close()  # the next call starts a new one
            raise Unavailable(
                f"the vLLM engine of {self.name} died; its own log says why (VLLM_LOGGING_LEVEL=INFO shows more)"
            ) from error
        except BaseException:
            if engine.llm_engine.has_unfinished_requests():
                self.close()  # or they would be answered among the next call's
            raise
        return answers

    def _load(self) -> Any:
        """The engine, started when it is first needed."""
        if self._engine is None:
            for variable, value in _ENVIRONMENT.items():
                os.environ.setdefault(variable, value)
            try:
                from vllm import LLM
            except ImportError as error:
                raise Unavailable(
                    f"vLLM cannot be imported ({error}): install the package's extra `vllm`, or set backend: "
                    "transformers"
                ) from error
            others = multiprocessing.active_children()
            try:
                engine = LLM(model=str(self.path), **self._arguments())
            except Exception as error:  # of many kinds, and none of them a row's fault
                raise Unavailable(f"vLLM cannot run {self.name}: {error}") from error
            self._engine = engine
            self._watch = _watch([child.pid for child in multiprocessing.active_children() if child not in others])
            if getattr(engine.get_tokenizer(), "chat_template", "") is None:
                self.close()
                raise Unavailable(f"the model {self.name} has no chat template: name an instruction-tuned one")
        return self._engine

    def _arguments(self) -> dict[str, Any]:
        """What the settings say to the engine; what they leave out is vLLM's to choose."""
        from vllm.platforms import current_platform

        settings = self.settings
        optional = {
            # A prompt that is read in pieces has its seed's state wound back, which no CPU can: it kills the engine.
            "enable_chunked_prefill": False if current_platform.is_cpu() else None,
            "revision": None if Path(self.path).is_dir() else settings.revision,
            "max_model_len": settings.max_model_len,
            "max_num_seqs": settings.max_num_seqs,
            "quantization": settings.quantization,
        }
        return {
            "dtype": settings.dtype,
            "tensor_parallel_size": settings.tensor_parallel_size,
            "gpu_memory_utilization": settings.gpu_memory_utilization,
            "enforce_eager": settings.enforce_eager,
            "enable_prefix_caching": True,
            **{name: value for name, value in optional.items() if value is not None},
        }


def _watch(processes: Sequence[int | None]) -> subprocess.Popen[bytes]:
    """Have these processes ended when this one is gone, even if it is killed and can end nothing itself."""
    script = Path(__file__).with_name("engine_watch.py")
    return subprocess.Popen(
        [sys.executable, str(script), *map(str, processes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # an interrupt from the keyboard is for the owner
    )


def _prompt_lengths(engine: Any, conversations: Sequence[Conversation]) -> list[int]:
    """Tokens of each conversation, as the model will read it."""
    tokenizer = engine.get_tokenizer()
    return [
        len(tokenizer.apply_chat_template(list(c), add_generation_prompt=True, tokenize=True, return_dict=False))
        for c in conversations
    ]


def _sampling_params(sampling: Sampling, seeds: Sequence[int], schema: JsonSchema | None) -> list[Any]:
    """vLLM's own parameters, one for each row, since each has a seed of its own."""
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError
    from vllm.sampling_params import StructuredOutputsParams

    structured = {} if schema is None else {"structured_outputs": StructuredOutputsParams(json=dict(schema))}
    try:
        return [
            SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_new_tokens,
                seed=seed,
                **structured,
            )
            for seed in seeds
        ]
    except (ValueError, VLLMValidationError) as error:
        raise Unavailable(f"vLLM does not take these sampling settings: {error}") from error


def _reply(answer: Any) -> Reply:
    """What vLLM wrote to one conversation."""
    written = answer.outputs[0]
    return Reply(
        written.text.strip(), written.finish_reason == "stop", len(answer.prompt_token_ids), len(written.token_ids)
    )


def _too_long(length: int, sampling: Sampling, window: int) -> Failed:
    """What is said of a prompt that is too long, before anything shorter takes its place."""
    return Failed(
        f"a prompt of {length} tokens and {sampling.max_new_tokens} new ones do not fit into the model's {window}; "
        "shorten the query or lower max_new_tokens"
    )
