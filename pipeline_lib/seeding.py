"""Seeds by name: every random draw in Coppice is keyed by what it is for, never by when it happens.

So a result does not depend on the order in which problems were searched, on the shard they fell
into, or on how often the run was killed.
"""

from __future__ import annotations

import hashlib

import numpy as np

SEED_BITS = 63


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2**63) from a sequence of names and numbers.

    ``SHA-256`` over the parts, each with its type and length, so that ("ab", "c") and ("a", "bc")
    differ. Stable over platforms and Python versions.

    Example: ``derive_seed(0, 1, "tiny-word/train/00017")`` is the seed of that problem's tree in iteration 1.
    """
    digest = hashlib.sha256()
    for part in parts:
        text = f"{type(part).__name__}:{part}".encode()
        digest.update(len(text).to_bytes(4, "big") + text)
    return int.from_bytes(digest.digest()[:8], "big") >> (64 - SEED_BITS)


def derive_generator(*parts: int | str) -> np.random.Generator:
    """A numpy generator (Philox, counter based) seeded by `derive_seed`."""
    return np.random.Generator(np.random.Philox(key=derive_seed(*parts)))
