"""The profile: every setting of the platform, typed, validated when it is loaded, and documented where it stands.

Belongs here: the settings' schema and how they are read from a profile's YAML file and the environment. Does not
belong here: making anything from them; every backend does that beside its own code.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from ml.curation import CurationSettings
from ml.fine_tuning import DpoSettings, TrainingSettings
from ml.preference import PairSettings
from resources.language_model import Sampling
from storage.refresh import RefreshConfig

PROFILES = Path(__file__).parent / "profiles"
CHECKOUT = Path(__file__).parent.parent
BUNDLED = "bundled"
EMBEDDED = "embedded"
NOT_SETTINGS = frozenset({"VPO_PROFILE", "VPO_SHARED_DATA", "VPO_DEBUG", "VPO_SCREENSHOTS"})


class SettingsError(ValueError):
    """Settings that cannot be used: one line a fault, with the key, the value, and what is allowed."""


class Section(BaseModel):
    """A part of the profile: unknown keys are errors, and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _target_name(name: str) -> str:
    if not name.isidentifier() or not name.islower():
        raise ValueError("a target's name is made of lower-case letters, digits and underscores")
    return name


TargetName = Annotated[str, AfterValidator(_target_name)]


class SamplingSettings(Section):
    """How a language model draws its answers."""

    temperature: float = Field(0.7, ge=0, le=5)
    top_p: float = Field(1.0, gt=0, le=1)
    max_new_tokens: int = Field(96, ge=1)

    def sampling(self) -> Sampling:
        """The same as a language model takes it."""
        return Sampling(self.temperature, self.top_p, self.max_new_tokens)


class QueriesSettings(Section):
    """Where queries come from, and how they are curated."""

    files: list[str] = Field(default=[BUNDLED], description="query files; `bundled` is the shapes world's own")
    curation: CurationSettings = CurationSettings()


class LanguageModelSettings(Section):
    """The language model that drafts, and that SFT starts from."""

    backend: Literal["transformers"] = "transformers"
    model: str = Field(EMBEDDED, description="a folder or hub name; `embedded` is SmolLM2-135M-Instruct")
    revision: str | None = None
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, ...")
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    batch_size: int = Field(32, ge=1)


class DraftSettings(Section):
    """Few-shot drafting."""

    examples: str = Field(BUNDLED, description="JSON lines with query and prompt, or `bundled`")
    shots: int = Field(5, ge=0)
    limit: int | None = Field(None, ge=1, description="draft for so many queries at most")
    sampling: SamplingSettings = SamplingSettings()


class JudgeSettings(Section):
    """Text-level feedback."""

    backend: Literal["rules"] = "rules"


class VideoGeneratorSettings(Section):
    """The target video model. `arguments` go to the pipeline's call as they are (frames, size, steps, ...)."""

    backend: Literal["diffusers"] = "diffusers"
    model: str = Field(description="a folder or hub name of a diffusers pipeline; `embedded` is the shapes model")
    revision: str | None = None
    device: str = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_size: int = Field(1, ge=1)
    fps: float = Field(8.0, gt=0, lt=1000)
    arguments: dict[str, int | float | str | bool] = {}


class VideoRewardSettings(Section):
    """Video-level feedback."""

    backend: Literal["pixels"] = "pixels"


class CandidateSettings(Section):
    """Sampling from the policy; the paper draws 4 at temperature 0.9 and top_p 0.9."""

    per_query: int = Field(4, ge=2)
    policy: str = Field("sft", description="`sft`, or the id of any checkpoint")
    sampling: SamplingSettings = SamplingSettings(temperature=0.9, top_p=0.9)
    limit: int | None = Field(None, ge=1, description="sample for so many queries at most")


class EvaluationSettings(Section):
    """Held-out queries and how often each prompt is rendered."""

    seeds_per_prompt: int = Field(2, ge=1)
    sampling: SamplingSettings = SamplingSettings(temperature=0.7, top_p=1.0)
    limit: int | None = Field(None, ge=1, description="evaluate on so many queries at most")


class TargetSettings(Section):
    """One target video model and everything that is done for it."""

    video_generator: VideoGeneratorSettings
    video_reward: VideoRewardSettings = VideoRewardSettings()
    candidates: CandidateSettings = CandidateSettings()
    seeds_per_prompt: int = Field(1, ge=1, description="videos a candidate; more make the reward less noisy")
    pairs: PairSettings = PairSettings()
    dpo: DpoSettings = DpoSettings(learning_rate=5e-7, schedule="linear")
    evaluation: EvaluationSettings = EvaluationSettings()


class RefreshSettings(Section):
    """How tables are brought up to date."""

    text_batch: int = Field(64, ge=1, description="prompts written and committed together")
    video_batch: int = Field(32, ge=1, description="videos rendered and committed together")
    max_attempts: int = Field(3, ge=1, description="refreshes that try a failing row before it is given up")
    max_failure_ratio: float = Field(0.2, ge=0, le=1)

    def config(self, batch_size: int) -> RefreshConfig:
        """The lake's settings for tables with batches of this size."""
        return RefreshConfig(
            batch_size=batch_size, max_attempts=self.max_attempts, max_failure_ratio=self.max_failure_ratio
        )


class ComputeSettings(Section):
    """Where batches are worked on."""

    backend: Literal["local"] = "local"


class TrainerSettings(Section):
    """How training processes are started. `launch` are arguments of `accelerate launch`; none: one process."""

    backend: Literal["trl"] = "trl"
    launch: list[str] = []


class Profile(BaseSettings):
    """All settings. Sources, the first one wins: environment (`VPO_SFT__EPOCHS=2`), the profile's file, defaults."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix="VPO_",
        env_nested_delimiter="__",
        nested_model_default_partial_update=True,
    )

    home: Path = Field(CHECKOUT / ".vpo", description="folder of all data")
    seed: int = 0
    templates: Path | None = Field(None, description="folder whose *.txt files replace the templates of that name")
    queries: QueriesSettings = QueriesSettings()
    language_model: LanguageModelSettings = LanguageModelSettings()
    drafts: DraftSettings = DraftSettings()
    judge: JudgeSettings = JudgeSettings()
    sft: TrainingSettings = TrainingSettings(learning_rate=2e-6, epochs=5)
    targets: dict[TargetName, TargetSettings] = Field(min_length=1)
    trainer: TrainerSettings = TrainerSettings()
    compute: ComputeSettings = ComputeSettings()
    refresh: RefreshSettings = RefreshSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment before file; no .env file, no secrets folder."""
        del dotenv_settings, file_secret_settings
        return init_settings, env_settings, YamlConfigSettingsSource(settings_cls, _file_being_read)


_file_being_read: Path | None = None


def load_profile(name_or_path: str | None = None) -> Profile:
    """Load a profile by its name (a file of resources/profiles) or path; default: `VPO_PROFILE`, else `local`.

    Raises SettingsError with one line for every fault.
    """
    global _file_being_read
    chosen = name_or_path or os.environ.get("VPO_PROFILE") or "local"
    file = profile_file(chosen)
    _refuse_unknown_variables()
    _file_being_read = file
    try:
        profile = Profile()
    except ValidationError as error:
        lines = [f"{file.name}: {_fault(fault)}" for fault in error.errors()]
        raise SettingsError("\n".join(lines)) from None
    except Exception as error:
        raise SettingsError(f"{file}: cannot be read: {error}") from error
    finally:
        _file_being_read = None
    return profile.model_copy(update={"home": profile.home.expanduser().resolve()})


def profile_file(name_or_path: str) -> Path:
    """The file of a profile; a name without a slash or ending is looked up among the shipped ones."""
    shipped = sorted(file.stem for file in PROFILES.glob("*.yaml"))
    if name_or_path in shipped:
        return PROFILES / f"{name_or_path}.yaml"
    file = Path(name_or_path).expanduser()
    if not file.is_file():
        raise SettingsError(
            f"VPO_PROFILE = {name_or_path!r}: no such profile; name a YAML file or one of {', '.join(shipped)}"
        )
    return file


def _refuse_unknown_variables() -> None:
    known = {f"VPO_{name.upper()}" for name in Profile.model_fields}
    for variable in os.environ:
        if variable.startswith("VPO_") and variable not in NOT_SETTINGS and variable.split("__")[0] not in known:
            raise SettingsError(
                f"environment: {variable} is no setting; settings begin with one of {', '.join(sorted(known))}"
            )


def _fault(fault: Any) -> str:
    """One line about one fault, whatever pydantic found. Values are cut, and never shown where keys may stand."""
    key = ".".join(str(part) for part in fault["loc"]) or "profile"
    if fault["type"] == "missing":
        return f"{key} is missing"
    if fault["type"] == "extra_forbidden":
        return f"{key} is no setting"
    message = fault["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return f"{key} = {str(fault['input'])[:80]!r}: {message}"


__all__ = ["Profile", "SettingsError", "load_profile"]
