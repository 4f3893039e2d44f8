"""What a user can set about curation, each with our default.

The paper publishes the kinds of rules (keyword, special-character and length rules, self-BLEU diversity, NSFW
scores) but no thresholds: every default here is ours, chosen so that ordinary queries as people write them
are kept.
"""

from pydantic import BaseModel, ConfigDict, Field, model_validator

DEFAULT_BLOCKED_PHRASES = (
    # These speak of something outside the text, so the text alone cannot be made into a video.
    "make this image",
    "make this photo",
    "make this picture",
    "animate this image",
    "animate this photo",
    "animate this picture",
    "through this image",
    "attached image",
    "attached photo",
    "attached picture",
    "uploaded image",
    "uploaded photo",
    # Not a description of a video.
    "lorem ipsum",
)


class CurationSettings(BaseModel):
    """Thresholds of curation. All defaults are ours."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    minimum_words: int = Field(default=2, ge=1, description="Queries of fewer words are too short.")
    minimum_characters: int = Field(default=4, ge=1, description="Queries of fewer characters are too short.")
    maximum_characters: int = Field(default=1200, ge=1, description="Longer queries are too long.")
    special_character_share: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="Largest share of symbols that are neither letters nor usual punctuation.",
    )
    repeated_word_share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="One word may make up at most this share of a query of six words or more.",
    )
    repeated_in_a_row: int = Field(default=5, ge=2, description="The same word this often in a row is too often.")
    blocked_phrases: tuple[str, ...] = Field(
        default=DEFAULT_BLOCKED_PHRASES, description="Queries with one of these phrases are dropped."
    )
    english_only: bool = Field(default=True, description="Drop queries in other languages.")
    near_duplicate_threshold: float | None = Field(
        default=0.8,
        gt=0,
        le=1,
        description="Jaccard similarity of letter 5-grams from which two queries count as one; null: off.",
    )
    diversity_threshold: float | None = Field(
        default=0.9,
        gt=0,
        le=1,
        description="Drop queries whose BLEU against a sample of the others is above this; null: off.",
    )
    diversity_sample: int = Field(default=1000, ge=2, description="Size of the sample that diversity is told against.")
    nsfw_threshold: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="A query with an NSFW score above this is unsafe (kept, and marked).",
    )
    sft_share: float = Field(default=0.45, ge=0, le=1, description="Share of queries for SFT.")
    dpo_share: float = Field(default=0.35, ge=0, le=1, description="Share of queries for DPO.")
    test_share: float = Field(default=0.20, ge=0, le=1, description="Share of queries held out.")

    @model_validator(mode="after")
    def _shares_are_whole(self) -> "CurationSettings":
        total = self.sft_share + self.dpo_share + self.test_share
        if abs(total - 1) > 1e-6:
            raise ValueError(f"sft_share, dpo_share and test_share must sum to 1; they sum to {total:g}.")
        return self
