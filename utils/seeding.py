"""Seeds as pure functions of what they are for: a resumed or differently split run draws the same numbers."""

import numpy as np


def derive_seed(*parts: int) -> int:
    """Return a 62-bit seed that depends on every one of the non-negative integers, in order.

    Trailing zeros of up to four integers do not count: ``(seed, i)`` and ``(seed, i, 0)`` give one seed.
    """
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(2))
