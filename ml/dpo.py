"""Direct preference optimization of a prompt optimizer (VPO, stage two): `python -m ml.dpo JOB.json`.

Belongs here: turning preference pairs into TRL's DPO. Data: Parquet with `messages` (the request), `chosen` and
`rejected` (prompts). Does not belong here: which pairs there are (ml/preference.py).
"""

from typing import Any

from ml.fine_tuning import (
    DpoSettings,
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
    """Train as the job says, against the job's base model as the reference policy."""
    from trl import DPOConfig, DPOTrainer

    if job.dpo is None:
        raise ValueError("the job has no dpo settings")
    pairs = _pairs(job)
    arguments = DPOConfig(**common_arguments(job, job.dpo), **own_arguments(job.dpo))
    if job.revision is not None:  # the reference is loaded by TRL, under FSDP
        arguments.model_init_kwargs = {"revision": job.revision}
    model, tokenizer = load_model_and_tokenizer(job, job.dpo)
    trainer = DPOTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset_file(job, pairs),
        processing_class=tokenizer,
        peft_config=lora_config(job.dpo),
    )
    too_long = too_long_count(
        tokenizer,
        [pair["prompt"] + answer for pair in pairs for answer in (pair["chosen"], pair["rejected"])],
        job.dpo.max_length,
    )
    train_and_save(trainer, tokenizer, job, len(pairs), too_long, supervisor)


def own_arguments(settings: DpoSettings) -> dict[str, Any]:
    """The arguments that DPOConfig has beside those of `common_arguments`."""
    losses, weights = ["sigmoid_norm" if settings.length_normalization else "sigmoid"], [1.0]
    if settings.sft_weight > 0:
        losses, weights = [*losses, "sft"], [*weights, settings.sft_weight]
    return {
        "beta": settings.beta,
        "loss_type": losses,
        "loss_weights": weights,
        "ld_alpha": settings.length_desensitization,
        "precompute_ref_log_probs": settings.precompute_reference,
    }


def _pairs(job: TrainingJob) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    rows = pq.read_table(job.data, columns=["messages", "chosen", "rejected"]).to_pylist()
    if not rows:
        raise NothingToLearn(
            f"{job.data} holds no preference pairs: the candidates of a query may be all alike, or the margin "
            "of preference_pairs may be too wide"
        )
    return [
        {
            "prompt": row["messages"],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
        for row in rows
    ]


if __name__ == "__main__":
    run(train)
