"""The settings of every backend, as they stand in a profile: what is to be used, where, and how.

Belongs here: one section a backend, and the unions that a profile chooses from by `backend`. Does not belong here:
the profile itself (settings.py), or making anything from a section; each backend does that beside its own code.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    model_validator,
)

from resources.language_model import Sampling

EMBEDDED = "embedded"

ModelDtype = Literal["float32", "bfloat16", "float16"]


def _without_nulls(values: object) -> object:
    return {key: value for key, value in values.items() if value is not None} if isinstance(values, Mapping) else values


NullTakesAway = BeforeValidator(_without_nulls)
"""Of a dictionary of names that differ from target to target: `null` takes away what is taken over from another one."""


class Section(BaseModel):
    """A part of the profile: unknown keys are errors, and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def choice_of(default: str) -> Discriminator:
    """Which member of a union is meant: the one that `backend` names, or the default."""

    def backend(value: Any) -> Any:
        return value.get("backend", default) if isinstance(value, dict) else getattr(value, "backend", default)

    return Discriminator(backend)


def _web_address(address: str) -> str:
    if not address.startswith(("http://", "https://")):
        raise ValueError("an address begins with http:// or https://")
    parts = urlsplit(address)
    if not parts.hostname:
        raise ValueError("the address names no host")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("an address holds no user, password or ?query: it is written down, keys are not")
    return address.rstrip("/")


def _own_fields_left_alone(body: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """More fields of a request's body, without those that the platform sets itself, and without keys."""
    for name, instead in {
        "model": "model",
        "messages": "the templates",
        "seed": "seed",
        "n": "per_query",
        "stream": "none: answers are taken whole",
        "api_key": "key_variable",
    }.items():
        if name in body:
            raise ValueError(f"{name} cannot be set here; the setting for it is: {instead}")
    return body


def _odd(number: int) -> int:
    if number % 2 == 0:
        raise ValueError("must be odd, so that there is a majority")
    return number


WebAddress = Annotated[str, AfterValidator(_web_address)]


class EndpointSettings(Section):
    """A server that is asked over HTTP. The key is never written down: `key_variable` names where it is."""

    base_url: WebAddress = Field(description="address up to and with /v1")
    key_variable: str | None = Field(None, description="environment variable that holds the key; none: no key")
    concurrency: int = Field(16, ge=1, description="requests under way at once")
    timeout: float = Field(120.0, gt=0, description="seconds for one request")
    retries: int = Field(6, ge=0, description="tries after the first, for errors that may pass")


class BudgetSettings(Section):
    """What one run may spend. When it is spent, the run stops; what is done stays, and the next run goes on."""

    tokens: int | None = Field(None, ge=1, description="prompt and completion tokens together")
    money: float | None = Field(None, gt=0, description="in the currency of the prices")
    price_per_million_prompt_tokens: float = Field(0.0, ge=0)
    price_per_million_completion_tokens: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _money_needs_prices(self) -> "BudgetSettings":
        priced = self.price_per_million_prompt_tokens or self.price_per_million_completion_tokens
        if self.money is not None and not priced:
            raise ValueError("a budget in money needs the prices per million tokens")
        return self


def _own_code(name: str) -> str:
    file, colon, function = name.rpartition(":")
    if not colon or not file.endswith(".py") or not function.isidentifier():
        raise ValueError("must be a file and what makes the backend in it, such as my_model.py:make")
    return name


class OwnCodeSettings(Section):
    """Code of your own, which runs in this process with all its rights (docs/extend)."""

    backend: Literal["python"] = "python"
    make: Annotated[str, AfterValidator(_own_code)] = Field(
        description="file.py:function, or a class; a relative path begins where the command runs"
    )
    arguments: dict[str, JsonValue] = Field({}, description="what it is called with")

    @property
    def model(self) -> str:
        """How it is called where others name their model."""
        return self.make


# ---- language models -------------------------------------------------------------------------------------------------


class TransformersModelSettings(Section):
    """A language model in this process, with transformers."""

    backend: Literal["transformers"] = "transformers"
    model: str = Field(EMBEDDED, description="a folder or hub name; `embedded` is SmolLM2-135M-Instruct")
    revision: str | None = None
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, ...")
    dtype: ModelDtype = "bfloat16"
    batch_size: int = Field(32, ge=1)


class VllmModelSettings(Section):
    """A language model in this process, with vLLM."""

    backend: Literal["vllm"] = "vllm"
    model: str = Field(EMBEDDED, description="a folder or hub name; `embedded` is SmolLM2-135M-Instruct")
    revision: str | None = None
    dtype: ModelDtype = "bfloat16"
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs that share the model")
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    max_model_len: int | None = Field(None, ge=16, description="tokens of prompt and answer; default: the model's")
    max_num_seqs: int | None = Field(None, ge=1, description="sequences at once; default: vLLM's")
    quantization: str | None = None
    enforce_eager: bool = False


class EndpointModelSettings(EndpointSettings):
    """A language model behind an OpenAI-compatible endpoint."""

    backend: Literal["openai"] = "openai"
    model: str
    revision: str | None = Field(None, description="set it by hand when the served model changes under its name")
    budget: BudgetSettings = BudgetSettings()
    send_seed: bool = True
    structured_output: Literal["json_schema", "json_object", "none"] = Field(
        "json_schema", description="how the server is told to answer in JSON"
    )
    extra_body: Annotated[dict[str, JsonValue], AfterValidator(_own_fields_left_alone)] = Field(
        {}, description="more fields of the request's body, as the server takes them; null removes one"
    )


LanguageModelSettings: TypeAlias = Annotated[
    Annotated[TransformersModelSettings, Tag("transformers")]
    | Annotated[VllmModelSettings, Tag("vllm")]
    | Annotated[EndpointModelSettings, Tag("openai")],
    choice_of("transformers"),
]
PolicySettings: TypeAlias = Annotated[
    Annotated[TransformersModelSettings, Tag("transformers")] | Annotated[VllmModelSettings, Tag("vllm")],
    choice_of("transformers"),
]


# ---- judges ----------------------------------------------------------------------------------------------------------


class SamplingSettings(Section):
    """How a language model draws its answers."""

    temperature: float = Field(0.7, ge=0, le=5)
    top_p: float = Field(1.0, gt=0, le=1)
    max_new_tokens: int = Field(96, ge=1)

    def sampling(self) -> Sampling:
        """The same as a language model takes it."""
        return Sampling(self.temperature, self.top_p, self.max_new_tokens)


class RulesJudgeSettings(Section):
    """The offline judge."""

    backend: Literal["rules"] = "rules"


class LlmJudgeSettings(Section):
    """A language model as judge."""

    backend: Literal["llm"] = "llm"
    language_model: LanguageModelSettings
    sampling: SamplingSettings = SamplingSettings(temperature=0.7, max_new_tokens=1024)
    votes: Annotated[int, AfterValidator(_odd)] = Field(1, ge=1, le=15, description="verdicts; the majority counts")
    repairs: int = Field(1, ge=0, le=5, description="times that a malformed verdict is asked for again")
    confirm_refinement: bool = Field(
        False, description="compare a refinement with the flawed prompt, both ways round, and drop it if it loses"
    )


class OwnJudgeSettings(OwnCodeSettings):
    """A judge of your own."""


JudgeSettings: TypeAlias = Annotated[
    Annotated[RulesJudgeSettings, Tag("rules")]
    | Annotated[LlmJudgeSettings, Tag("llm")]
    | Annotated[OwnJudgeSettings, Tag("python")],
    choice_of("rules"),
]


# ---- video models ----------------------------------------------------------------------------------------------------


class DiffusersSettings(Section):
    """A text-to-video pipeline of diffusers in this process. `arguments` go to its call as they are."""

    backend: Literal["diffusers"] = "diffusers"
    model: str = Field(
        description="a folder or hub name of a diffusers pipeline; `embedded` and `embedded_latte` are of shapes"
    )
    revision: str | None = None
    device: str = "auto"
    dtype: ModelDtype = "float32"
    batch_size: int = Field(1, ge=1)
    fps: float = Field(8.0, gt=0, lt=1000)
    negative_prompt: str | None = None
    arguments: Annotated[dict[str, int | float | str | bool], NullTakesAway] = Field(
        {}, description="of the pipeline's call: frames, size, steps, guidance, ...; `default`: what it chooses itself"
    )
    offload: Literal["none", "model", "sequential", "group"] = Field(
        "none", description="keep weights off the GPU while they are not needed; slower, and in ever smaller parts"
    )
    vae_tiling: bool = False
    vae_slicing: bool = False
    compile: bool = Field(False, description="torch.compile the transformer")
    attention_backend: str | None = Field(None, description="a name that diffusers' set_attention_backend takes")
    cache: Literal["none", "pab", "fastercache", "first_block", "magcache", "taylorseer"] = Field(
        "none", description="reuse of activations between steps; changes pixels a little"
    )
    cache_arguments: dict[str, int | float | str | bool | tuple[float, ...] | tuple[str, ...]] = Field(
        {}, description="of diffusers' configuration of that cache, such as threshold or mag_ratios"
    )
    layerwise_casting: bool = Field(False, description="keep the transformer's weights in float8")


class VideoServerSettings(EndpointSettings):
    """A video server with vllm-omni's /v1/videos: jobs that are asked for, waited for and fetched."""

    backend: Literal["video_server"] = "video_server"
    model: str
    revision: str | None = Field(None, description="set it by hand when the served model changes under its name")
    fps: float = Field(8.0, gt=0, lt=1000)
    negative_prompt: str | None = None
    arguments: dict[str, int | float | str | bool] = Field({}, description="num_frames, size, steps, guidance, ...")
    poll_seconds: float = Field(2.0, gt=0)
    job_timeout: float = Field(3600.0, gt=0, description="seconds from asking for a video to having it")


class OwnVideoGeneratorSettings(OwnCodeSettings):
    """A video model of your own."""

    fps: float = Field(8.0, gt=0, lt=1000)


VideoGeneratorSettings: TypeAlias = Annotated[
    Annotated[DiffusersSettings, Tag("diffusers")]
    | Annotated[VideoServerSettings, Tag("video_server")]
    | Annotated[OwnVideoGeneratorSettings, Tag("python")],
    choice_of("diffusers"),
]


# ---- rewards ---------------------------------------------------------------------------------------------------------


class ChecklistFiles(Section):
    """A checklist in VisionReward's files: questions, and either all weights or which questions they are for."""

    questions: Path
    weights: Path
    select: Path | None = None


class PixelRewardSettings(Section):
    """The offline checklist of the shapes world."""

    backend: Literal["pixels"] = "pixels"


class VlmRewardSettings(EndpointSettings):
    """A vision-language model behind an OpenAI-compatible endpoint that answers yes or no."""

    backend: Literal["vlm"] = "vlm"
    model: str
    revision: str | None = Field(None, description="set it by hand when the served model changes under its name")
    checklist: ChecklistFiles | Path = Field(description="VisionReward's files, or a checklist in JSON")
    frames: int = Field(8, ge=1, description="frames of each clip that the model is shown")
    send: Literal["video", "frames", "file"] = Field(
        "video", description="the clip as a video data URL, as pictures, or as the address of a file on a shared disk"
    )
    questions_per_request: int = Field(1, ge=1)
    extra_body: dict[str, Any] = {}


class VisionRewardSettings(EndpointSettings):
    """VisionReward, or a scalar reward model, behind the service of services/visionreward."""

    backend: Literal["visionreward"] = "visionreward"
    base_url: WebAddress = Field("http://127.0.0.1:8800", description="address of the service")
    concurrency: int = Field(2, ge=1, description="requests under way at once; the model answers one after the other")
    timeout: float = Field(900.0, gt=0, description="seconds for one request")
    model: str = "THUDM/VisionReward-Video"
    revision: str | None = None
    checklist: ChecklistFiles | Path | None = Field(None, description="none: a scalar model names its own scores")
    batch_size: int = Field(4, ge=1, description="clips a request")


class OwnVideoRewardSettings(OwnCodeSettings):
    """A reward model of your own."""


VideoRewardSettings: TypeAlias = Annotated[
    Annotated[PixelRewardSettings, Tag("pixels")]
    | Annotated[VlmRewardSettings, Tag("vlm")]
    | Annotated[VisionRewardSettings, Tag("visionreward")]
    | Annotated[OwnVideoRewardSettings, Tag("python")],
    choice_of("pixels"),
]

BACKENDS = frozenset(
    str(section.model_fields["backend"].default)
    for section in (
        TransformersModelSettings,
        VllmModelSettings,
        EndpointModelSettings,
        RulesJudgeSettings,
        LlmJudgeSettings,
        DiffusersSettings,
        VideoServerSettings,
        PixelRewardSettings,
        VlmRewardSettings,
        VisionRewardSettings,
        OwnCodeSettings,
    )
)
"""Every name that a `backend` may have."""
