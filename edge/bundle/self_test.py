"""Running all parts of a bundle once."""

import numpy as np

from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.manifest import MODEL, ORACLE
from rws.edge.bundle.options import ModelOptions
from rws.edge.live.base import PatchableModel
from rws.edge.tasks.base import check_finite
from rws.errors import BundleError, InputError, RwsError
from rws.oracle.belief import CorruptionOracle


def self_test(bundle: Bundle, model: PatchableModel | None = None, oracle: CorruptionOracle | None = None) -> list[str]:
    """Run every network and signature of a bundle, leaving the model clean; returns a line per part, or RwsError."""
    spec, task = bundle.manifest.input, bundle.task()
    image = np.random.default_rng(0).integers(0, 256, (spec.height, spec.width, 3), np.uint8)
    x, view = (taken.take(image) for taken in (spec, bundle.manifest.view))
    model, policy = model or bundle.model(ModelOptions(threads=1)), bundle.policy()
    oracle = oracle or bundle.oracle(threads=1)
    clean = model.predict(x)
    shapes = [output.shape for output in clean]
    try:
        task.check(shapes)
        check_finite(clean)
    except InputError as error:
        raise BundleError(f"{bundle.path / MODEL}: {error}; export it again") from error
    names = np.array([*bundle.table.corruptions, ""])[bundle.table.signature]  # "" is that of no patch, −1
    strengths = bundle.table.alpha
    for name in bundle.signatures.names:
        model.apply({name: max([1.0, *strengths[names == name].tolist()])})
        try:
            check_finite(model.predict(x))
        except InputError as error:
            raise BundleError(f"{bundle.path / MODEL}: with {name!r}: {error}; extract that signature again") from error
    model.reset()
    if not all(map(np.array_equal, model.predict(x), clean)):
        raise RwsError("the clean weights did not come back after a patch; report this with the versions in `pip list`")
    try:
        belief = oracle.observe(view)
    except InputError as error:
        raise BundleError(f"{bundle.path / ORACLE}: {error}; export it again") from error
    model.apply(policy.choose(belief))
    model.reset()
    return [
        f"model runs: {' x '.join(map(str, spec.shape))} to {', '.join(map(str, shapes))}; task {task.name}",
        f"{len(bundle.signatures.names)} signatures patch it, and the clean weights come back bit for bit",
        f"oracle runs: {len(belief.joint)} states",
        f"policy chooses among {len(bundle.table.alpha)} actions",
    ]
