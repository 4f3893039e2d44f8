"""Supervised fine-tuning of a prompt optimizer (VPO, stage one): `python -m ml.sft JOB.json`.

Belongs here: turning examples into TRL's SFT. Data: Parquet with `messages`, a list of role and content whose
last message is the prompt to be learned. Does not belong here: what DPO needs as well (ml/fine_tuning.py).
"""

from typing import Any

from ml.fine_tuning import (
    NothingToLearn,
    TrainingJob,
    common_arguments,
    dataset_file,
    load_model_and_tokenizer,
    lora_config,
    run,
    too_long_count,
    train_and_save,
)
from ml.supervision import Supervisor


def train(job: TrainingJob, supervisor: Supervisor | None = None) -> None:
    """Train as the job says. The loss counts the answer's tokens only."""
    from trl import SFTConfig, SFTTrainer

    if job.sft is None:
        raise ValueError("the job has no sft settings")
    conversations = _conversations(job)
    arguments = SFTConfig(**common_arguments(job, job.sft), **own_arguments())
    model, tokenizer = load_model_and_tokenizer(job, job.sft)
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=_dataset(job, conversations),
        processing_class=tokenizer,
        peft_config=lora_config(job.sft),
    )
    too_long = too_long_count(tokenizer, conversations, job.sft.max_length)
    train_and_save(trainer, tokenizer, job, len(conversations), too_long, supervisor)


def own_arguments() -> dict[str, Any]:
    """The arguments that SFTConfig has beside those of `common_arguments`."""
    return {"completion_only_loss": True}


def _conversations(job: TrainingJob) -> list[list[dict[str, str]]]:
    import pyarrow.parquet as pq

    conversations: list[list[dict[str, str]]] = pq.read_table(job.data, columns=["messages"])["messages"].to_pylist()
    if not conversations:
        raise NothingToLearn(f"{job.data} holds no examples: materialize sft_dataset with more queries first")
    return conversations


def _dataset(job: TrainingJob, conversations: list[list[dict[str, str]]]) -> Any:
    return dataset_file(job, [{"prompt": messages[:-1], "completion": messages[-1:]} for messages in conversations])


if __name__ == "__main__":
    run(train)
