"""Seeds of random numbers, derived from the seed of a run."""

import numpy as np


def derived_seed(seed: int, *key: int, scheme: int = 2) -> int:
    """Derive a seed from the seed of a run and a key, such as an epoch and a process.

    Args:
        seed: of the run.
        key: different keys give different seeds, also if they differ only in their length.
        scheme: 2 for new runs. Older runs of wrn_DKS use 1, in which keys that differ only in
            zeros at their end give the same seed.
    """
    if scheme == 1:
        state = np.random.SeedSequence((seed, *key)).generate_state(1, np.uint64)
        return int(state[0]) % 2**63
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0])
