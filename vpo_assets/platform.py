"""Everything that the assets work with, made from one profile.

Belongs here: putting lake, stores and backends together, each made when it is first used. Does not belong here:
any step of the method.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ml import templates
from ml.drafting import Example, load_examples
from resources.backend_settings import Section
from resources.compute import build_mapper
from resources.compute_settings import Stage
from resources.judge import Judge, build_judge
from resources.language_model import LanguageModel
from resources.models import build_language_model, model_name, model_path
from resources.query_locations import located
from resources.ray_compute import RayMapper
from resources.settings import BUNDLED, Profile, TargetSettings, load_profile
from resources.shared_storage import checkpoint_store, lake_place, video_store
from resources.trainer import TrlTrainer, build_trainer
from resources.video_generator import VideoGenerator, build_video_generator
from resources.video_reward import VideoReward, build_video_reward
from storage import tables
from storage.checkpoints import CheckpointStore
from storage.lake import Lake
from storage.refresh import Mapper
from storage.videos import VideoStore

BUNDLED_QUERIES = Path(__file__).parent.parent / "ml" / "shapes" / "shapes_queries.jsonl"
BUNDLED_EXAMPLES = Path(templates.__file__).parent / "few_shot_examples.jsonl"


@dataclass
class Platform:
    """A profile and what it names. Nothing is opened or loaded before it is used."""

    profile: Profile
    _policies: dict[str, LanguageModel] = field(default_factory=dict, repr=False)
    _aligned: dict[tuple[str, str], VideoGenerator] = field(default_factory=dict, repr=False)
    _mappers: list[Mapper] = field(default_factory=list, repr=False)

    def __reduce__(self) -> tuple[Callable[[Profile], "Platform"], tuple[Profile]]:
        """To another process it goes as its profile; what it has opened or loaded stays here."""
        return type(self), (self.profile,)

    @classmethod
    def from_environment(cls) -> "Platform":
        """The platform of the profile that `VPO_PROFILE` names."""
        return cls(load_profile())

    @property
    def home(self) -> Path:
        """The folder of all data."""
        return self.profile.home

    @cached_property
    def lake(self) -> Lake:
        """The lake, with every table of the graph in it."""
        self.home.mkdir(parents=True, exist_ok=True)
        lake = Lake(lake_place(self.home, self.profile.lake, self.profile.object_store))
        of_targets = (*tables.BRANCH, *tables.PEOPLE)
        branches = [table.at(target) for target in self.profile.targets for table in of_targets]
        benchmarked = [name for name, settings in self.profile.targets.items() if settings.evaluation.vbench]
        branches += [table.at(target) for target in benchmarked for table in tables.BENCHMARK]
        lake.create(*tables.TRUNK, *branches, *tables.BOOKKEEPING)
        return lake

    @cached_property
    def videos(self) -> VideoStore:
        """The files that the video tables refer to."""
        return video_store(self.home, self.profile.videos, self.profile.object_store)

    @cached_property
    def checkpoints(self) -> CheckpointStore:
        """The trained prompt optimizers, and aligned video models."""
        return checkpoint_store(self.home, self.profile.checkpoints, self.profile.object_store)

    @cached_property
    def language_model(self) -> LanguageModel:
        """The model that writes drafts."""
        return build_language_model(self.profile.language_model, self.models)

    @property
    def models(self) -> Path:
        """The folder of unpacked models."""
        return self.home / "models"

    @property
    def base_model(self) -> str:
        """Folder or hub name of the model that SFT starts from."""
        return model_path(self.profile.trained_model, self.models)

    @property
    def base_model_name(self) -> str:
        """A name that changes with its weights, for recipes."""
        return model_name(self.profile.trained_model)

    def policy(self, checkpoint_id: str) -> LanguageModel:
        """A trained checkpoint as a language model, kept until `release`."""
        if checkpoint_id not in self._policies:
            path, _ = self.checkpoints.load(checkpoint_id)
            self._policies[checkpoint_id] = build_language_model(
                self.profile.trained_model, self.models, weights=path, name=checkpoint_id
            )
        return self._policies[checkpoint_id]

    @cached_property
    def judge(self) -> Judge:
        """Text-level feedback."""
        return build_judge(self.profile.judge, self.models)

    @cached_property
    def trainer(self) -> TrlTrainer:
        """SFT and DPO."""
        return build_trainer(self.profile.trainer, self.profile.compute)

    def mapper(self, stage: Stage, backends: Sequence[Section]) -> Mapper:
        """Where batches of a stage are worked on that needs these backends."""
        places = [self.videos.remote, self.checkpoints.remote]
        self._mappers.append(build_mapper(self.profile.compute, stage, backends, self.home, places))
        return self._mappers[-1]

    @cached_property
    def video_generators(self) -> Mapping[str, VideoGenerator]:
        """The target video models."""
        return {
            name: build_video_generator(t.video_generator, self.home / "video_jobs" / name)
            for name, t in self.profile.targets.items()
        }

    def video_generator(self, target: str, video_model: str | None = None) -> VideoGenerator:
        """A target's video model; with a checkpoint, the same with that transformer, kept until `release`."""
        if video_model is None:
            return self.video_generators[target]
        if (target, video_model) not in self._aligned:
            path, _ = self.checkpoints.load(video_model)
            settings = self.target(target).video_generator
            self._aligned[target, video_model] = build_video_generator(settings, transformer=path)
        return self._aligned[target, video_model]

    @cached_property
    def video_rewards(self) -> Mapping[str, VideoReward]:
        """The reward models of the targets."""
        return {
            name: build_video_reward(t.video_reward, fps=t.video_generator.fps, folder=self.home / "sent_clips")
            for name, t in self.profile.targets.items()
        }

    @cached_property
    def examples(self) -> tuple[Example, ...]:
        """The bank of few-shot examples."""
        name = self.profile.drafts.examples
        return load_examples(BUNDLED_EXAMPLES if name == BUNDLED else Path(name))

    def template(self, name: str) -> templates.Template:
        """A template, the profile's own where its folder has one of that name."""
        return templates.load(name, self.profile.templates)

    def target(self, name: str) -> TargetSettings:
        """A target's settings."""
        return self.profile.targets[name]

    @property
    def inbox(self) -> Path:
        """The folder whose query files are taken in by themselves."""
        inbox = self.profile.queries.inbox
        return self.home / "inbox" if inbox is None else inbox.expanduser().resolve()

    def query_files(self) -> list[Path]:
        """The profile's query files; those of the hub are fetched. Raises NoQueryFile."""
        return located([str(BUNDLED_QUERIES) if name == BUNDLED else name for name in self.profile.queries.files])

    def release(self) -> None:
        """Free the memory of every model that was loaded, here or in workers; each loads again when it is needed."""
        for mapper in self._mappers:
            if isinstance(mapper, RayMapper):
                mapper.close()
        self._mappers.clear()
        loaded: list[LanguageModel | VideoGenerator | VideoReward | Judge] = [
            *self._policies.values(),
            *self._aligned.values(),
        ]
        built = vars(self)
        loaded += [built[name] for name in ("language_model", "judge") if name in built]
        for name in ("video_generators", "video_rewards"):
            loaded += list(built.get(name, {}).values())
        for model in loaded:
            model.close()
        self._policies.clear()
        self._aligned.clear()


def quiet_libraries(variables: Iterable[str] = ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY")) -> None:
    """Keep libraries' chatter out of the runs' logs, unless the user asked for it."""
    for variable in variables:
        os.environ.setdefault(variable, "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
