"""Splitting queries by their id, so that a query never changes its split, whatever else comes or goes."""

import hashlib

from ml.curation.settings import CurationSettings

SPLITS = ("sft", "dpo", "test")


def split_of(query_id: str, settings: CurationSettings) -> str:
    """ "sft", "dpo" or "test", by a hash of the query_id.

    The test split lies at the lower end of the range of hashes: shifting queries between sft and dpo leaves
    it alone, and enlarging it only adds to it.
    """
    digest = hashlib.sha256(f"vpo-split:{query_id}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < settings.test_share:
        return "test"
    return "sft" if place >= settings.test_share + settings.dpo_share and settings.sft_share > 0 else "dpo"
