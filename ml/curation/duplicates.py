"""Queries that say the same: exactly, and nearly (MinHash, Broder 1997, with locality-sensitive hashing).

Deterministic: hashes are fixed, and of each group of equal queries the one with the smallest query_id stays.
"""

import re
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint32]

_SHINGLE = 5
_PERMUTATIONS = 128
# Of pairs exactly at the threshold at least this share must meet in a bucket; of more similar ones nearly all
# do.
_RECALL = 0.99
_NOT_A_WORD = re.compile(r"[\W_]+")


def normalised(query: str) -> str:
    """What two queries must share to be exact duplicates: the words, whatever case and punctuation."""
    return _NOT_A_WORD.sub(" ", query.casefold()).strip()


def exact_duplicates(query_ids: Sequence[str], queries: Sequence[str]) -> npt.NDArray[np.bool_]:
    """(n,) True for each query whose normalised text a query with a smaller query_id has too."""
    seen: set[str] = set()
    duplicate = np.zeros(len(queries), dtype=np.bool_)
    for position in sorted(range(len(queries)), key=query_ids.__getitem__):
        words = normalised(queries[position])
        # A text without words (other scripts have words too) is its own key.
        key = words or queries[position]
        duplicate[position] = key in seen
        seen.add(key)
    return duplicate


def near_duplicates(query_ids: Sequence[str], queries: Sequence[str], threshold: float) -> npt.NDArray[np.bool_]:
    """(n,) True for each query that is nearly the same as one that stays and has a smaller query_id.

    Near means a Jaccard similarity of letter 5-grams of at least `threshold`, computed exactly for every pair
    that MinHash suggests. Each query is compared with queries that stay only, so a thousand copies cost a
    thousand comparisons and not half a million.
    """
    duplicate = np.zeros(len(queries), dtype=np.bool_)
    if not len(queries):
        return duplicate
    order = sorted(range(len(queries)), key=query_ids.__getitem__)
    shingles = [_shingles(normalised(queries[position]) or queries[position]) for position in order]
    bands = _bands(_signatures(shingles), threshold)
    buckets: dict[tuple[int, int], list[int]] = {}
    for rank, keys in enumerate(bands.tolist()):
        places = [(band, key) for band, key in enumerate(keys)]
        suggested = sorted({other for place in places for other in buckets.get(place, ())})
        if any(_similar(shingles[rank], shingles[other], threshold) for other in suggested):
            duplicate[order[rank]] = True
            continue
        for place in places:
            buckets.setdefault(place, []).append(rank)
    return duplicate


def _shingles(text: str) -> Hashes:
    """The distinct letter 5-grams, as sorted 32-bit hashes; the whole text where it is shorter."""
    encoded = text.encode("utf-32-le", "surrogatepass")
    codes = np.frombuffer(encoded, dtype=np.uint32)
    if len(codes) <= _SHINGLE:
        return np.array([zlib.crc32(encoded)], dtype=np.uint32)
    windows = np.lib.stride_tricks.sliding_window_view(codes, _SHINGLE).astype(np.uint64)
    mixed = np.zeros(len(windows), dtype=np.uint64)
    for column in range(_SHINGLE):
        mixed = (mixed ^ windows[:, column]) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(31)
    return np.unique((mixed >> np.uint64(32)).astype(np.uint32))


def _signatures(shingles: Sequence[Hashes]) -> Hashes:
    """(n, permutations) the smallest hash of each set under each of a fixed family of hash functions."""
    sizes = np.array([len(item) for item in shingles], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    values = np.concatenate(shingles).astype(np.uint64)
    random = np.random.default_rng(20250320)
    factors = random.integers(0, 2**63, _PERMUTATIONS, dtype=np.uint64) | np.uint64(1)
    offsets = random.integers(0, 2**63, _PERMUTATIONS, dtype=np.uint64)
    signatures = np.empty((len(shingles), _PERMUTATIONS), dtype=np.uint32)
    for column in range(_PERMUTATIONS):
        hashed = ((values * factors[column] + offsets[column]) >> np.uint64(32)).astype(np.uint32)
        signatures[:, column] = np.minimum.reduceat(hashed, starts)
    return signatures


def _rows_per_band(threshold: float) -> int:
    """As many rows per band as recall at the threshold allows: more rows, fewer needless comparisons."""
    for rows in range(16, 1, -1):
        if 1 - (1 - threshold**rows) ** (_PERMUTATIONS // rows) >= _RECALL:
            return rows
    return 1


def _bands(signatures: Hashes, threshold: float) -> npt.NDArray[np.uint64]:
    """(n, bands) one bucket key per band of the signature."""
    rows = _rows_per_band(threshold)
    count = _PERMUTATIONS // rows
    parts = signatures[:, : count * rows].astype(np.uint64).reshape(len(signatures), count, rows)
    keys = np.zeros((len(signatures), count), dtype=np.uint64)
    for row in range(rows):
        keys = (keys ^ parts[:, :, row]) * np.uint64(0xD6E8FEB86659FD93)
        keys ^= keys >> np.uint64(32)
    return keys


def _similar(one: Hashes, other: Hashes, threshold: float) -> bool:
    smaller, larger = sorted((len(one), len(other)))
    if smaller < threshold * larger:
        return False
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared >= threshold * (len(one) + len(other) - shared) - 1e-9
