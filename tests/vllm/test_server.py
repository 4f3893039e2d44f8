"""`vllm serve`, asked like any other endpoint: the contract, and structured output as a server gives it."""

import json

import pytest

from ml.parsing import VERDICT_SCHEMA, parse_verdict
from resources.endpoint_model import EndpointLanguageModel
from resources.language_model import LanguageModel, Sampling
from resources.outcome import Unavailable
from tests.resources.language_model_contract import WARM, LanguageModelContract, asking, replies
from tests.vllm import NEEDS_VLLM
from tests.vllm.conftest import server_settings

pytestmark = NEEDS_VLLM


class TestServedByVllm(LanguageModelContract):
    long_reply = 300
    too_long = "maximum context length"

    @pytest.fixture
    def model(self, server: str) -> LanguageModel:
        return EndpointLanguageModel(server_settings(server))


def test_a_schema_binds_the_reply(server: str) -> None:
    model = EndpointLanguageModel(server_settings(server))
    asked = [asking(f"Give me a verdict with the code 00000000000000a{n}.") for n in range(4)]
    outcomes = replies(model.generate(asked, Sampling(0.5, 0.9, 300), [1, 2, 3, 4], schema=VERDICT_SCHEMA))
    whole = [reply.text for reply in outcomes if reply.whole]
    assert whole
    for text in whole:
        assert parse_verdict(text, json.loads(text)["nonce"])


def test_a_model_that_the_server_does_not_have_is_nobodys_row(server: str) -> None:
    model = EndpointLanguageModel(server_settings(server, model="another"))
    with pytest.raises(Unavailable, match="another"):
        model.generate([asking("a")], WARM, [1])
