"""One derivation of all seeds, so that training, held-out and test images never share random draws."""

import hashlib
import json


def derive_seed(seed: int, purpose: str, corruption: str = "", severity: float = 0, draw: int = 0) -> int:
    """Derive the seed of one set of random draws per purpose (hash of seed, purpose, corruption, severity, draw).

    `purpose`: `training`, `calibration`, `validation`, `test`, …; one per set of images. `severity`: 5 and 5.0 are
    the same. `draw`: number of the epoch, or of the layer among corruptions laid over one another.
    Returns 0 … 2^62 − 1: a seed for `seeds_for`, `torch.Generator` and `numpy.random.default_rng`.
    """
    key = json.dumps([int(seed), purpose, corruption, float(severity), int(draw)])
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 2
