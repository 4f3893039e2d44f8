"""Direct preference optimization of a prompt optimizer (VPO, stage two): `python -m ml.dpo JOB.json`.

Belongs here: turning preference pairs into TRL's DPO. Data: Parquet with `messages` (the request), `chosen` and
`rejected` (prompts). Does not belong here: which pairs there are (ml/preference.py).
"""

import sys
from typing import Any

from ml.fine_tuning import (
    NothingToLearn,
    TrainingJob,
    common_arguments,
    load_model_and_tokenizer,
    lora_config,
    read_job,
    too_long_count,
    train_and_save,
)


def train(job: TrainingJob) -> None:
    """Train as the job says, against the job's base model as the reference policy."""
    from trl import DPOConfig, DPOTrainer

    if job.dpo is None:
        raise ValueError("the job has no dpo settings")
    pairs = _pairs(job)
    model, tokenizer = load_model_and_tokenizer(job)
    losses, weights = ["sigmoid"], [1.0]
    if job.dpo.sft_weight > 0:
        losses, weights = ["sigmoid", "sft"], [1.0, job.dpo.sft_weight]
    arguments = DPOConfig(
        **common_arguments(job, job.dpo),
        beta=job.dpo.beta,
        loss_type=losses,
        loss_weights=weights,
        precompute_ref_log_probs=job.dpo.precompute_reference,
    )
    trainer = DPOTrainer(
        model=model,
        args=arguments,
        train_dataset=_dataset(pairs),
        processing_class=tokenizer,
        peft_config=lora_config(job.dpo),
    )
    too_long = too_long_count(
        tokenizer,
        [pair["prompt"] + answer for pair in pairs for answer in (pair["chosen"], pair["rejected"])],
        job.dpo.max_length,
    )
    train_and_save(trainer, tokenizer, job, len(pairs), too_long)


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


def _dataset(pairs: list[dict[str, Any]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(pairs)


if __name__ == "__main__":
    train(read_job(sys.argv))
