"""Running all parts of a bundle once."""

import numpy as np

from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.manifest import MODEL, ORACLE
from rws.edge.bundle.options import ModelOptions
from rws.edge.live.base import PatchableModel
from rws.errors import BundleError, InputError, RwsError
from rws.oracle.belief import CorruptionOracle


def self_test(bundle: Bundle, model: PatchableModel | None = None, oracle: CorruptionOracle | None = None) -> list[str]:
    """Run every network and signature of a bundle, leaving the model clean; returns a line per part, or RwsError."""
    size = bundle.manifest.input
    x = np.random.default_rng(0).random((3, size.height, size.width), np.float32)
    model, policy = model or bundle.model(ModelOptions(threads=1)), bundle.policy()
    oracle = oracle or bundle.oracle(threads=1)
    clean = model.predict(x)
    if clean.shape != (1, len(bundle.manifest.classes)) or not np.isfinite(clean).all():
        expected = f"(1, {len(bundle.manifest.classes)}) finite logits; export it again"
        raise BundleError(f"{bundle.path / MODEL}: gives {clean.shape} for one image, expected {expected}")
    names = np.array([*bundle.table.corruptions, ""])[bundle.table.signature]  # "" is that of no patch, −1
    strengths = bundle.table.alpha
    for name in bundle.signatures.names:
        model.apply({name: max([1.0, *strengths[names == name].tolist()])})
        if not np.isfinite(model.predict(x)).all():
            where = bundle.path / MODEL
            raise BundleError(f"{where}: with {name!r} its logits are not finite; extract that signature again")
    model.reset()
    if not np.array_equal(model.predict(x), clean):
        raise RwsError("the clean weights did not come back after a patch; report this with the versions in `pip list`")
    try:
        belief = oracle.observe(x)
    except InputError as error:
        raise BundleError(f"{bundle.path / ORACLE}: {error}; export it again") from error
    model.apply(policy.choose(belief))
    model.reset()
    return [
        f"model runs: 3 x {size.height} x {size.width} to {clean.shape[1]} classes",
        f"{len(bundle.signatures.names)} signatures patch it, and the clean weights come back bit for bit",
        f"oracle runs: {len(belief.joint)} states",
        f"policy chooses among {len(bundle.table.alpha)} actions",
    ]
