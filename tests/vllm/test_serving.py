"""`vpo serve --backend vllm`: the same server, with vLLM's engine behind it."""

import asyncio
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import openai
import pytest

from storage.checkpoints import CheckpointManifest
from tests.test_serve import serving
from tests.vllm import NEEDS_VLLM
from tests.vllm.conftest import vllm_settings
from vpo_assets.platform import Platform

pytestmark = NEEDS_VLLM

POLICY = "sft-" + "0" * 16


def test_the_official_client_is_answered_by_vllm(
    platform: Platform, smollm2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(folder: Path) -> Mapping[str, Any]:
        shutil.copytree(smollm2, folder, dirs_exist_ok=True)
        return {}

    platform.checkpoints.commit(POLICY, CheckpointManifest(id=POLICY, stage="sft", base="none", recipe={}), fill)
    monkeypatch.setenv("VPO_POLICY", json.dumps(vllm_settings().model_dump(mode="json")))

    async def ask_all(address: str) -> list[openai.types.chat.ChatCompletion]:
        async with openai.AsyncOpenAI(base_url=address, api_key="none", max_retries=0, timeout=300) as client:
            return await asyncio.gather(
                *(
                    client.chat.completions.create(
                        model="vpo",
                        messages=[{"role": "user", "content": f"a cat and {i} dogs"}],
                        seed=i,
                        max_tokens=24,
                    )
                    for i in range(40)
                )
            )

    with serving("--checkpoint", POLICY, "--backend", "vllm") as (process, address):
        completions = asyncio.run(ask_all(address))
        assert all(c.choices[0].message.content for c in completions)
        assert all(c.usage is not None and c.usage.prompt_tokens > 0 for c in completions)
        process.terminate()
        process.wait(60)
