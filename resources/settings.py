"""The profile: every setting of the platform, typed, validated when it is loaded, and documented where it stands.

Belongs here: the settings' schema and how they are read from a profile's YAML file and the environment. Does not
belong here: making anything from them; every backend does that beside its own code.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from ml.alignment_settings import AlignmentSettings
from ml.curation import CurationSettings
from ml.fine_tuning import DpoSettings, TrainingSettings
from ml.preference import PairSettings
from resources.backend_settings import (
    BACKENDS,
    DiffusersSettings,
    EndpointModelSettings,
    JudgeSettings,
    LanguageModelSettings,
    NullTakesAway,
    PixelRewardSettings,
    PolicySettings,
    RulesJudgeSettings,
    SamplingSettings,
    Section,
    TransformersModelSettings,
    VideoGeneratorSettings,
    VideoRewardSettings,
)
from resources.compute_settings import COMPUTE_BACKENDS, ComputeSettings, LocalComputeSettings, RayTrainingSettings
from resources.inherited_settings import EXTENDS, laid_over, named_above, with_likes
from resources.licences import PublishingSettings
from resources.optimizer_settings import SafetySettings, ServingSettings
from resources.shared_storage import SQLITE, Database, LakeSettings, Location, ObjectStoreSettings
from resources.vbench_settings import VbenchSettings
from storage.query_files import SCORES
from storage.refresh import RefreshConfig

PROFILES = Path(__file__).parent / "profiles"
CHECKOUT = Path(__file__).parent.parent
BUNDLED = "bundled"
SFT = "sft"
PLAIN_KINDS = frozenset({"int", "float", "str", "bool"})
SECTION_NAMES = frozenset({section.__name__ for section in Section.__subclasses__()})
CHOSEN_BY_BACKEND = frozenset({"language_model", "policy", "judge", "video_generator", "video_reward", "compute"})
NOT_SETTINGS = frozenset({"VPO_PROFILE", "VPO_SHARED_DATA", "VPO_DEBUG", "VPO_SCREENSHOTS", "VPO_SERVE_KEY"})


PAPER_SFT = TrainingSettings(learning_rate=2e-6, epochs=5, batch_size=16, micro_batch_size=2)
PAPER_DPO = DpoSettings(learning_rate=5e-7, schedule="linear", batch_size=16, micro_batch_size=2)
"""The paper's trainings, which are the defaults: arXiv 2503.20491, and docs/training.md."""


_CHECKPOINT = re.compile(r"(sft|dpo)-[0-9a-f]{16}")


class SettingsError(ValueError):
    """Settings that cannot be used: one line a fault, with the key, the value, and what is allowed."""


def _target_name(name: str) -> str:
    if not name.isidentifier() or not name.islower():
        raise ValueError("a target's name is made of lower-case letters, digits and underscores")
    return name


TargetName = Annotated[str, AfterValidator(_target_name)]


def _query_columns(columns: dict[str, str]) -> dict[str, str]:
    known = ("text", *SCORES)
    unknown = sorted(set(columns) - set(known))
    if unknown:
        raise ValueError(f"{unknown[0]!r} cannot be mapped; what can is {', '.join(known)}")
    return columns


class QueriesSettings(Section):
    """Where queries come from, and how they are curated."""

    files: list[str] = Field(default=[BUNDLED], description="query files; `bundled` is the shapes world's own")
    inbox: Path | None = Field(None, description="folder whose files are taken in by themselves; none: inbox in `home`")
    take_down: list[str] = Field(default=[], description="files that list queries, or query ids, not to be used")
    columns: Annotated[dict[str, str], AfterValidator(_query_columns)] = Field(
        default={}, description="names of the columns: {text: wish, toxicity: harm}; used where a file has them"
    )
    curation: CurationSettings = CurationSettings()


class DraftSettings(Section):
    """Few-shot drafting."""

    examples: str = Field(BUNDLED, description="JSON lines with query and prompt, or `bundled`")
    shots: int = Field(5, ge=0)
    limit: int | None = Field(None, ge=1, description="draft for so many queries at most")
    sampling: SamplingSettings = SamplingSettings()


class CandidateSettings(Section):
    """Sampling from the policy; the paper draws 4 at temperature 0.9 and top_p 0.9."""

    per_query: int = Field(4, ge=2)
    policy: str = Field(
        SFT, description="`sft`; or a target, whose DPO checkpoint it is then (another round); or any checkpoint's id"
    )
    sampling: SamplingSettings = SamplingSettings(temperature=0.9, top_p=0.9)
    limit: int | None = Field(None, ge=1, description="sample for so many queries at most")


METHODS = ("original", "few_shot", "sft", "vpo")
"""What every evaluation compares: the query as it is, a few-shot prompt, and both checkpoints' prompts."""


def _method_name(name: str) -> str:
    if not name.isidentifier() or not name.islower() or name in METHODS:
        raise ValueError(f"a name of lower-case letters, digits and underscores, and none of {', '.join(METHODS)}")
    return name


class EvaluationSettings(Section):
    """Held-out queries, how often each prompt is rendered, and what is compared."""

    others: Annotated[dict[Annotated[str, AfterValidator(_method_name)], str], NullTakesAway] = Field(
        default={}, description="more methods: a name, and a target, whose DPO checkpoint it is, or a checkpoint's id"
    )
    seeds_per_prompt: int = Field(2, ge=1)
    sampling: SamplingSettings = SamplingSettings(temperature=0.7, top_p=1.0)
    limit: int | None = Field(None, ge=1, description="evaluate on so many queries at most")
    vbench: VbenchSettings | None = Field(None, description="VBench's prompts and scores beside it; none: no assets")

    @model_validator(mode="after")
    def _known_methods(self) -> "EvaluationSettings":
        known = (*METHODS, *self.others)
        for method in (self.vbench.methods if self.vbench else None) or ():
            if method not in known:
                raise ValueError(f"vbench.methods: {method[:80]!r} must be one of {', '.join(known)}")
        return self


class TargetSettings(Section):
    """One target video model and everything that is done for it."""

    like: str | None = Field(None, description="a target named above, whose settings hold where none are given here")
    feedback_from: str | None = Field(
        None, description="a target named above, whose candidates, verdicts and rewards the pairs are selected from"
    )
    evaluated: bool = Field(True, description="whether the target has an evaluation of its own")
    video_generator: VideoGeneratorSettings
    video_reward: VideoRewardSettings = PixelRewardSettings()
    candidates: CandidateSettings = CandidateSettings()
    seeds_per_prompt: int = Field(1, ge=1, description="videos a candidate; more make the reward less noisy")
    pairs: PairSettings = PairSettings()
    dpo: DpoSettings = PAPER_DPO
    alignment: AlignmentSettings | None = Field(
        None, description="Diffusion-DPO of the video model on the films of feedback_from, before it films here"
    )
    evaluation: EvaluationSettings = EvaluationSettings()

    @model_validator(mode="after")
    def _aligned_on_films(self) -> "TargetSettings":
        if self.alignment is None:
            return self
        if self.feedback_from is None:
            raise ValueError("alignment needs feedback_from: the target whose films and rewards it learns from")
        if not isinstance(self.video_generator, DiffusersSettings):
            raise ValueError("alignment trains the video model's weights: it needs video_generator.backend diffusers")
        return self


class RefreshSettings(Section):
    """How tables are brought up to date."""

    text_batch: int = Field(64, ge=1, description="prompts written and committed together")
    video_batch: int = Field(32, ge=1, description="videos rendered and committed together")
    max_attempts: int = Field(3, ge=1, description="refreshes that try a failing row before it is given up")
    max_failure_ratio: float = Field(0.2, ge=0, le=1)
    min_free_gb: float = Field(1.0, ge=0, description="with less room on the disk, work stops before it is written to")

    def config(self, batch_size: int) -> RefreshConfig:
        """The lake's settings for tables with batches of this size."""
        return RefreshConfig(
            batch_size=batch_size, max_attempts=self.max_attempts, max_failure_ratio=self.max_failure_ratio
        )


def _cron(text: str) -> str:
    if len(text.split()) != 5:
        raise ValueError("must have five fields: minute, hour, day, month, weekday, such as `0 3 * * *`")
    return text


class AutomationSettings(Section):
    """What starts by itself while the UI or a daemon runs."""

    running: bool = Field(False, description="whether sensors are switched on from the start; else in the UI")
    training: bool = Field(False, description="whether new data trains new checkpoints without anyone asking")
    inbox_seconds: int = Field(30, ge=5, description="between two looks into the inbox")
    sweep_seconds: int = Field(120, ge=5, description="between two looks for what was left behind")
    cron: Annotated[str, AfterValidator(_cron)] | None = Field(
        None, description="when to look at the query files again, UTC; none: only when asked"
    )


class StorageSettings(Section):
    """What maintenance keeps (`vpo maintain`); never does it take what a checkpoint needs."""

    keep_days: float = Field(30.0, ge=1, description="snapshots of the lake younger than this")
    keep_snapshots_min: int = Field(100, ge=1, description="so many of the latest snapshots, however old")
    grace_hours: float = Field(
        24.0, ge=1, description="files younger than this: the row of one that a run is writing comes last"
    )


class RunsSettings(Section):
    """Where the runs are that the UI and its daemon start; those of `vpo materialize` are in its own process."""

    launcher: Literal["local", "ray"] = Field(
        "local", description="local: processes of the machine that the UI is on; ray: jobs of a Ray cluster"
    )
    address: str | None = Field(
        None, pattern=r"^https?://[A-Za-z0-9._\[\]:-]+$", description="of the cluster's job server: http://head:8265"
    )
    cpus: float = Field(1, ge=0, description="that the cluster counts for a run, beside those of its workers")
    resumes: int = Field(3, ge=0, description="how often a run whose node or process is gone goes on by itself")

    @model_validator(mode="after")
    def _somewhere(self) -> "RunsSettings":
        if (self.launcher == "ray") != (self.address is not None):
            raise ValueError("launcher: ray and address: http://head:8265 belong together")
        return self


ACCELERATE_CONFIGS = PROFILES / "accelerate"
LAUNCHES = ("none", "single", "ddp", "fsdp", "zero3")
ONE_PROCESS = frozenset({"none", "single"})


def _launch(name: str) -> str:
    if name not in LAUNCHES and Path(name).suffix not in (".yaml", ".yml", ".json"):
        raise ValueError(
            f"must be one of {', '.join(LAUNCHES)}, or the path of an accelerate config (.yaml, .yml or .json)"
        )
    return name


def _processes(number: object) -> object:
    if number == "auto" or (isinstance(number, int) and not isinstance(number, bool) and number >= 1):
        return number
    if isinstance(number, str) and number.isdecimal() and int(number) >= 1:  # the environment knows text only
        return int(number)
    raise ValueError("must be auto or a whole number from 1")


class TrainerSettings(Section):
    """How training processes are started."""

    backend: Literal["trl"] = "trl"
    launcher: Literal["accelerate", "ray"] = Field(
        "accelerate", description="accelerate: on this machine; ray: Ray Train's workers, on any nodes of a cluster"
    )
    ray: RayTrainingSettings = Field(RayTrainingSettings(), description="the workers of launcher: ray")
    accelerate: Annotated[str, AfterValidator(_launch)] = Field(
        "none",
        description="none: one plain process; by `accelerate launch`: single, ddp (a copy of the model a GPU), fsdp or "
        "zero3 (the model split over the GPUs), or the path of your own accelerate config",
    )
    processes: Annotated[Literal["auto"] | int, BeforeValidator(_processes)] = Field(
        "auto", description="processes that train; auto: one for each GPU that can be seen"
    )
    launch: tuple[str, ...] = Field((), description="more arguments of `accelerate launch`")

    @model_validator(mode="after")
    def _one_means_one(self) -> "TrainerSettings":
        if self.launcher == "ray":
            return self._with_workers_of_ray()
        if self.accelerate in ONE_PROCESS and not self.launch and self.processes not in ("auto", 1):
            raise ValueError(
                f"accelerate: {self.accelerate} is one process, not {self.processes}: choose ddp, fsdp or zero3"
            )
        return self

    def _with_workers_of_ray(self) -> "TrainerSettings":
        if self.processes != "auto":
            raise ValueError(f"processes = {self.processes} is of launcher: accelerate; with ray it is ray.workers")
        if self.launch:
            raise ValueError("launch is of launcher: accelerate, which is not used with ray")
        if self.accelerate in ONE_PROCESS and self.ray.workers > 1:
            raise ValueError(
                f"accelerate: {self.accelerate} is one process, and ray.workers = {self.ray.workers}: choose ddp, fsdp "
                "or zero3"
            )
        if self.accelerate not in (*ONE_PROCESS, "ddp") and not self.ray.gpus_per_worker:
            raise ValueError(f"accelerate: {self.accelerate} splits the model over GPUs: set ray.gpus_per_worker to 1")
        return self

    @property
    def accelerate_config(self) -> Path | None:
        """The file that `accelerate launch` is given; None where it is given none."""
        if self.accelerate == "none":
            return None
        if self.accelerate in LAUNCHES:
            return ACCELERATE_CONFIGS / f"{self.accelerate}.yaml"
        return Path(self.accelerate).expanduser()


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
    language_model: LanguageModelSettings = Field(TransformersModelSettings(), description="writes the drafts")
    policy: PolicySettings | None = Field(None, description="is fine-tuned; none: the same as language_model")
    drafts: DraftSettings = DraftSettings()
    judge: JudgeSettings = RulesJudgeSettings()
    sft: TrainingSettings = PAPER_SFT
    targets: dict[TargetName, TargetSettings] = Field(min_length=1)
    trainer: TrainerSettings = TrainerSettings()
    compute: ComputeSettings = Field(LocalComputeSettings(), description="where batches are worked on")
    refresh: RefreshSettings = RefreshSettings()
    automation: AutomationSettings = AutomationSettings()
    storage: StorageSettings = StorageSettings()
    safety: SafetySettings = Field(SafetySettings(), description="what optimize and serve do with failing outputs")
    serving: ServingSettings = ServingSettings()
    publishing: PublishingSettings = PublishingSettings()
    lake: LakeSettings = LakeSettings()
    videos: Location | None = Field(None, description="folder or s3://bucket/prefix; none: `videos` in `home`")
    checkpoints: Location | None = Field(None, description="the same of trained models; none: `checkpoints` in `home`")
    runs: RunsSettings = Field(RunsSettings(), description="where runs are that nobody starts from a terminal")
    run_storage: Database = Field(SQLITE, description="Dagster's runs and events: sqlite, or a database in Postgres")
    object_store: ObjectStoreSettings = Field(ObjectStoreSettings(), description="behind s3://")

    @model_validator(mode="before")
    @classmethod
    def _whole_targets(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("targets"), dict):
            return {**given, "targets": with_likes(given["targets"])}
        return given

    @model_validator(mode="after")
    def _references_to_targets(self) -> "Profile":
        above: dict[str, TargetSettings] = {}
        for name, target in self.targets.items():
            source, policy = target.feedback_from, target.candidates.policy
            key = f"targets.{name}.feedback_from = {source!r}"
            if source is not None and source not in above:
                raise ValueError(f"{key}: {named_above(above)}")
            if source is not None and above[source].feedback_from is not None:
                raise ValueError(f"{key}: has its own from {above[source].feedback_from}: name that one")
            if policy != SFT and policy not in above and not _CHECKPOINT.fullmatch(policy):
                said = f"must be {SFT}, the id of a checkpoint, or a target that is named above"
                raise ValueError(f"targets.{name}.candidates.policy = {policy[:80]!r}: {said}")
            for method, other in target.evaluation.others.items():
                if other not in self.targets and not _CHECKPOINT.fullmatch(other):
                    said = f"must be a target or the id of a checkpoint; the targets are {', '.join(self.targets)}"
                    raise ValueError(f"targets.{name}.evaluation.others.{method} = {other[:80]!r}: {said}")
            above[name] = target
        return self

    @model_validator(mode="after")
    def _runs_elsewhere_are_recorded_for_all(self) -> "Profile":
        if self.runs.launcher == "ray" and self.run_storage == SQLITE:
            raise ValueError("runs.launcher = 'ray': runs on other machines need run_storage in Postgres")
        return self

    @model_validator(mode="after")
    def _something_to_train(self) -> "Profile":
        if self.policy is None and isinstance(self.language_model, EndpointModelSettings):
            raise ValueError("language_model is an endpoint, which cannot be fine-tuned: name a model in policy")
        return self

    @property
    def trained_model(self) -> PolicySettings:
        """The model that SFT starts from, and how its checkpoints write."""
        if self.policy is not None:
            return self.policy
        assert not isinstance(self.language_model, EndpointModelSettings)
        return self.language_model

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
        return init_settings, env_settings, InitSettingsSource(settings_cls, _being_read)


_being_read: dict[str, Any] = {}


def load_profile(name_or_path: str | None = None) -> Profile:
    """Load a profile by its name (a file of resources/profiles) or path; default: `VPO_PROFILE`, else `local`.

    Raises SettingsError with one line for every fault.
    """
    global _being_read
    chosen = name_or_path or os.environ.get("VPO_PROFILE") or "local"
    file = profile_file(chosen)
    _refuse_unknown_variables()
    try:
        _being_read = _read(file)
        profile = Profile()
    except ValidationError as error:
        lines = [f"{file.name}: {line}" for line in _lines(error.errors())]
        raise SettingsError("\n".join(lines)) from None
    except SettingsError:
        raise
    except Exception as error:
        raise SettingsError(f"{file}: cannot be read: {error}") from error
    finally:
        _being_read = {}
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


def _read(file: Path, readers: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The settings of a file, laid over those of the profile that it extends."""
    given = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    if not isinstance(given, dict):
        raise SettingsError(f"{file}: must be a section with keys of its own")
    other = given.pop(EXTENDS, None)
    if other is None:
        return given
    key = f"{file.name}: {EXTENDS} = {str(other)[:80]!r}"
    try:
        below = profile_file(str(other))
    except SettingsError as error:
        raise SettingsError(f"{key}: {str(error).partition(': ')[2]}") from None
    if below in (*readers, file):
        raise SettingsError(f"{key}: they extend each other")
    return laid_over(_read(below, (*readers, file)), given)


def _refuse_unknown_variables() -> None:
    known = {f"VPO_{name.upper()}" for name in Profile.model_fields}
    for variable in os.environ:
        if variable.startswith("VPO_") and variable not in NOT_SETTINGS and variable.split("__")[0] not in known:
            raise SettingsError(
                f"environment: {variable} is no setting; settings begin with one of {', '.join(sorted(known))}"
            )


def _lines(faults: Sequence[Any]) -> Iterator[str]:
    """One line for each fault. A value that may be of several kinds is one fault, not one for each kind."""
    several: dict[tuple[int | str, ...], list[Any]] = {}
    for fault in faults:
        choice = _choice(fault["loc"])
        several.setdefault(fault["loc"] if choice is None else choice, []).append(fault)
    for location, alike in several.items():
        inside = [fault for fault in alike if _choice(fault["loc"]) is None or len(fault["loc"]) > len(location) + 1]
        if inside:
            yield from (_fault(fault, _key_of(fault["loc"]), _message(fault)) for fault in inside)
        else:
            kinds = " or ".join(dict.fromkeys(_message(fault).removeprefix("must be ") for fault in alike))
            yield _fault(alike[0], _key_of(location), f"must be {kinds}")


def _fault(fault: Any, key: str, message: str) -> str:
    """One line about one fault, whatever pydantic found. Values are cut; whole sections are not shown."""
    if fault["type"] == "missing":
        return f"{key} is missing"
    if fault["type"] == "extra_forbidden":
        return f"{key} is no setting"
    if fault["type"] == "union_tag_not_found":
        return f"{key}.backend is empty: name a backend"
    if fault["type"] == "union_tag_invalid":
        return f"{key}.backend = {str(fault['ctx']['tag'])[:80]!r}: {message}"
    if isinstance(fault["input"], dict) and fault["input"]:
        return f"{key}: {message}" if fault["loc"] else message
    return f"{key} = {_without_password(str(fault['input']))[:80]!r}: {message}"


def _without_password(value: str) -> str:
    """A value that may be an address with a password in it, where none belongs."""
    hidden = re.sub(r"//([^/@:]*):.*@", r"//\1:***@", value)
    return re.sub(r"(?i)(password=)[^&\s]+", r"\1***", hidden)


def _message(fault: Any) -> str:
    """What is wrong, in the words of a profile."""
    if fault["type"] == "union_tag_invalid":
        return f"must be {str(fault['ctx']['expected_tags']).replace(', ', ' or ')}"
    if fault["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return "must be a section with keys of its own"
    if fault["type"] == "path_type":
        return "must be a path"
    return str(fault["msg"].removeprefix("Value error, ").replace("Input should be", "must be"))


def _choice(location: tuple[int | str, ...]) -> tuple[int | str, ...] | None:
    """The location of a value of several kinds, where pydantic names the kind that it tried after it."""
    for i, part in enumerate(location):
        name = str(part)
        last = i == len(location) - 1
        if "[" in name or name in SECTION_NAMES or (last and i > 0 and name in PLAIN_KINDS):
            return location[:i]
    return None


def _key_of(location: tuple[int | str, ...]) -> str:
    """The key as it stands in the file: where a backend or a kind was chosen, its name is no part of the key."""
    choice = _choice(location)
    if choice is not None:
        location = (*choice, *location[len(choice) + 1 :])
    parts = [str(part) for part in location]
    kept = [
        part
        for i, part in enumerate(parts)
        if i == 0 or part not in BACKENDS | COMPUTE_BACKENDS or parts[i - 1] not in CHOSEN_BY_BACKEND
    ]
    return ".".join(kept) or "profile"


__all__ = ["Profile", "SettingsError", "load_profile"]
