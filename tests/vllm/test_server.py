"""`vllm serve`, asked like any other endpoint: the contract, and structured output as a server gives it."""

import json

import pytest

from resources.endpoint_model import EndpointLanguageModel
from resources.language_model import LanguageModel, Sampling
from resources.outcome import Unavailable
from tests.resources.language_model_contract import SEEDS, WARM, LanguageModelContract, asking, replies
from tests.vllm import NEEDS_VLLM
from tests.vllm.conftest import SMALL_SCHEMA, server_settings

pytestmark = NEEDS_VLLM


class TestServedByVllm(LanguageModelContract):
    long_reply = 300
    too_long = "maximum context length"
    too_many = "max_model_len"

    @pytest.fixture
    def model(self, server: str) -> LanguageModel:
        return EndpointLanguageModel(server_settings(server))


def test_a_schema_binds_the_reply(server: str) -> None:
    model = EndpointLanguageModel(server_settings(server))
    asked = [asking(text) for text in ("hello", "Is the sky blue?", "x", "Say nothing.")]
    outcomes = replies(model.generate(asked, Sampling(0.3, 0.9, 150), SEEDS[:4], schema=SMALL_SCHEMA))
    whole = [json.loads(reply.text) for reply in outcomes if reply.whole]
    assert whole  # the others may be blanks to their end, which JSON allows
    for found in whole:
        assert set(found) == {"better", "sure"}
        assert found["better"] in ("A", "B", "tie")
        assert isinstance(found["sure"], bool)


def test_a_model_that_the_server_does_not_have_is_nobodys_row(server: str) -> None:
    model = EndpointLanguageModel(server_settings(server, model="another"))
    with pytest.raises(Unavailable, match="another"):
        model.generate([asking("a")], WARM, [1])
