"""A model with the interface of CogVLM2-Video's own code, a few thousand weights large.

It is saved with its checkpoint as that model's code is, and loaded from there. Here: the model, by what the service
uses of the real one: methods, names of arguments, tokens (a frame's share one position, its number follows them),
caches as tuples. It stands alone, as code of a checkpoint does.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

LANGUAGE, VISION = 0, 1
PADDING = 1


class TinyConfig(PretrainedConfig):
    """Sizes of the tiny model."""

    model_type = "tiny_cogvlm2_video"

    def __init__(self, **values: Any) -> None:
        self.hidden_size = values.pop("hidden_size", 32)
        self.num_hidden_layers = values.pop("num_hidden_layers", 2)
        self.num_attention_heads = values.pop("num_attention_heads", 4)
        self.num_multi_query_heads = values.pop("num_multi_query_heads", 2)
        self.vocab_size = values.pop("vocab_size", 300)
        self.vision_config = values.pop("vision_config", {"image_size": 16, "patch_size": 8})
        super().__init__(**{"tie_word_embeddings": False, **values})


class Vision(nn.Module):
    """(frames, 3, height, width) -> (frames, patches + 2, hidden)."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        patch = config.vision_config["patch_size"]
        self.patches = nn.Conv2d(3, config.hidden_size, patch, stride=patch)
        self.ends = nn.Parameter(torch.randn(2, config.hidden_size))
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        seen = self.patches(images).flatten(2).transpose(1, 2).tanh()
        first, last = (end.expand(len(images), 1, -1) for end in self.ends)
        return torch.cat([first, seen, last], dim=1)


def rotated(states: Tensor, positions: Tensor) -> Tensor:
    """Rotary position embedding; states (batch, heads, length, size)."""
    half = states.shape[-1] // 2
    angles = positions[:, None, :, None].float() / 100.0 ** (torch.arange(half, device=states.device) / half)
    one, two = states[..., :half], states[..., half:]
    turned = torch.cat([one * angles.cos() - two * angles.sin(), two * angles.cos() + one * angles.sin()], dim=-1)
    return turned.to(states.dtype)


class Layer(nn.Module):
    """Attention with fewer key heads than query heads, and an MLP."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.heads, self.key_heads = config.num_attention_heads, config.num_multi_query_heads
        self.size = config.hidden_size // self.heads
        self.norm, self.second_norm = nn.LayerNorm(config.hidden_size), nn.LayerNorm(config.hidden_size)
        self.query = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.key_value = nn.Linear(config.hidden_size, 2 * self.key_heads * self.size, bias=False)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(config.hidden_size, 2 * config.hidden_size),
            nn.SiLU(),
            nn.Linear(2 * config.hidden_size, config.hidden_size),
        )
        self.lengths: list[int] = []  # of what came through

    def forward(self, hidden: Tensor, positions: Tensor, mask: Tensor, past: Any) -> tuple[Tensor, Any]:
        batch, length, _ = hidden.shape
        self.lengths.append(length)
        normed = self.norm(hidden)
        query = self.query(normed).view(batch, length, self.heads, self.size).transpose(1, 2)
        key, value = (
            part.reshape(batch, length, self.key_heads, self.size).transpose(1, 2)
            for part in self.key_value(normed).chunk(2, dim=-1)
        )
        query, key = rotated(query, positions), rotated(key, positions)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        repeat = self.heads // self.key_heads
        read = nn.functional.scaled_dot_product_attention(
            query, key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1), attn_mask=mask
        )
        hidden = hidden + self.out(read.transpose(1, 2).reshape(batch, length, -1))
        return hidden + self.mlp(self.second_norm(hidden)), (key, value)


class Base(PreTrainedModel):
    config_class = TinyConfig
    base_model_prefix = "model"

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.data.normal_(std=0.4)


class Decoder(Base):
    """Reads frames and text."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size)
        self.vision = Vision(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed_tokens

    def forward(
        self,
        input_ids: Tensor,
        images: list[list[Tensor]] | None = None,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool = True,
        return_dict: bool = True,
    ) -> Any:
        assert return_dict
        hidden = self.embed_tokens(input_ids)
        if past_key_values is None:
            assert token_type_ids is not None
            if images:
                assert len(images) == len(input_ids)
                features = self.vision(images[0][0]).flatten(0, 1).to(hidden.dtype)
                hidden = hidden.index_put([token_type_ids == VISION], features)
            if position_ids is None:
                position_ids = positions_of(token_type_ids, attention_mask)
        assert position_ids is not None  # else they would be counted as if every token of a frame had its own
        before = 0 if past_key_values is None else past_key_values[0][0].shape[2]
        length = input_ids.shape[1]
        mask = torch.ones(length, before + length, dtype=torch.bool, device=hidden.device).tril(before)[None]
        if attention_mask is not None:
            assert attention_mask.shape[1] == before + length
            mask = mask & attention_mask.bool()[:, None]
        cache = []
        for number, layer in enumerate(self.layers):
            past = None if past_key_values is None else past_key_values[number]
            hidden, kept = layer(hidden, position_ids, mask[:, None], past)
            cache.append(kept)
        return SimpleNamespace(last_hidden_state=self.norm(hidden), past_key_values=tuple(cache) if use_cache else None)


def positions_of(kinds: Tensor, mask: Tensor | None) -> Tensor:
    """Positions: each word its own; of a frame the first, the patches together, and the last."""
    kinds = kinds.clone() if mask is None else kinds.masked_fill(~mask.bool(), -1)
    vision = kinds == VISION
    edge = torch.zeros_like(vision)
    edge[:, 1:] |= vision[:, 1:] & (kinds[:, :-1] == LANGUAGE)
    edge[:, :-1] |= vision[:, :-1] & (kinds[:, 1:] == LANGUAGE)
    inner = vision & ~edge
    moves = (kinds == LANGUAGE) | edge
    moves[:, 1:] |= inner[:, 1:] & ~inner[:, :-1]
    moves[:, 0] = False
    return moves.long().cumsum(dim=1)


class TinyCogVLM2Video(Base):
    """The whole model."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__(config)
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_decoder(self) -> Decoder:
        return self.model

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor | None = None, **others: Any
    ) -> dict[str, Any]:
        assert not others
        return {"input_ids": input_ids, "position_ids": positions_of(token_type_ids, attention_mask)}

    def build_conversation_input_ids(
        self,
        tokenizer: Any,
        *,
        query: str,
        history: list[Any] | None = None,
        images: list[Tensor] | None = None,
        template_version: str | None = None,
    ) -> dict[str, Any]:
        assert template_version == "chat"
        assert not history
        tokens, kinds = [tokenizer.bos_token_id], [LANGUAGE]
        if images is not None:
            (video,) = images  # channels, frames, height, width
            side, patch = (self.config.vision_config[name] for name in ("image_size", "patch_size"))
            seen = nn.functional.interpolate(video.transpose(0, 1) / 255.0, size=(side, side), mode="bilinear")
            images = [(seen - 0.45) / 0.27]
            for number in range(len(seen)):
                a_frame = (side // patch) ** 2 + 2
                tokens += [PADDING] * a_frame
                kinds += [VISION] * a_frame
                written = tokenizer.encode(str(number), add_special_tokens=False)
                tokens += written
                kinds += [LANGUAGE] * len(written)
        text = tokenizer.encode(f"Question: {query} Answer:", add_special_tokens=False)
        tokens += text
        kinds += [LANGUAGE] * len(text)
        return {
            "input_ids": torch.tensor(tokens),
            "token_type_ids": torch.tensor(kinds),
            "attention_mask": torch.ones(len(tokens), dtype=torch.long),
            "images": images,
        }
