"""The rivals of patching, each small, after its paper, on the bundle's own model in Torch.

`augmented`: one model, trained with all corruptions as augmentation. `all_models`: 20 whole models, the right one
chosen by the told type; each was trained as the bundle's recipe says, the default one for two epochs at severity 5
alone, so that it bounds nothing from above. `bn_batch`: BatchNorm with the statistics of the batch (Nado et al. 2020,
"Evaluating prediction-time batch normalization for robustness under covariate shift"). `bn_prior`: those mixed with the
training statistics, which count as 16 images (Schneider et al. 2020, "Improving robustness against common corruptions
by covariate shift adaptation", eq. 1; N = 16 is theirs for small batches). `tent`: as `bn_batch`, and a step of Adam a
batch on γ and β that lowers the entropy of the answers (Wang et al. 2021, "Tent: fully test-time adaptation by entropy
minimization"), at the published rate for CIFAR-10-C, 1e-3, which is for batches of 200. `tent_scaled`: the rate in
proportion to the batch, as Niu et al. 2023 (SAR) run Tent on small batches.

Beside them, for time and memory on the same engine: `std`, never patched, and `always`, all signatures averaged; both
with BatchNorm folded, as `augmented` and `all_models` are. `std_unfolded` is `std` with BatchNorm as layers of its own,
which the methods that adapt it cannot do without.
"""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from rws.benchmarks.baselines.models import RivalModels
from rws.benchmarks.common.interleave import Block, Measured, frames_per_block, interleave, settling_frames
from rws.benchmarks.common.memory import can_measure, give_back_unused, private_bytes, status_bytes
from rws.benchmarks.streams.protocols import Method
from rws.edge.bundle.bundle import Bundle
from rws.edge.bundle.manifest import MODEL
from rws.edge.bundle.options import ModelOptions
from rws.edge.common.child import python_command
from rws.edge.live.arena import ALPHA_STEP
from rws.errors import InputError, RwsError
from rws.training.corruptions import CORRUPTIONS
from rws.training.models.architectures import fold_batchnorm

RIVALS_VERSION = 1
"""Raise it when the same weights give other answers or costs."""

RIVALS = ("augmented", "all_models", "bn_batch", "bn_prior", "tent", "tent_scaled")
COMPARED = ("std", "std_unfolded", "always")

OURS = ("frame", "trained")
ENGINES = {"torch": (*COMPARED, *RIVALS, *OURS), "onnx": ("std", *OURS)}
"""What is measured on which engine."""

PRIOR_IMAGES = 16
TENT_RATE, TENT_BATCH = 1e-3, 200

_STATUS = Path("/proc/self/status")

Sample = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]
"""Frames as a method takes them: inputs (N, 3, H, W), types (N,), severities (N,)."""


class Rival(Method, Protocol):
    """A rival: it also says how many bytes of weights and states it carries, and what its answers depend on."""

    carried_bytes: int
    identity: str


def _to_torch(x: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(x).contiguous(memory_format=torch.channels_last)


def _prepared(module: nn.Module) -> nn.Module:
    """In eval mode and channels_last, the faster layout on a CPU; its parameters fixed."""
    return module.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _bytes_of(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _size(module: nn.Module) -> int:
    return _bytes_of([*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())])


def _digest(module: nn.Module) -> str:
    """What results depend on: the weights."""
    hasher = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        hasher.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return hasher.hexdigest()


def _batch_norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    found = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    if not found:
        raise InputError("the model has no BatchNorm to adapt; see rws.benchmarks.baselines.models.unfold")
    return found


class Fixed:
    """A model that stays as it is.

    Args:
        name: of the method.
        module: float32 (N, 3, H, W) → logits (N, K).
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name, self._module = name, _prepared(module)
        self.carried_bytes, self.identity = _size(self._module), _digest(self._module)

    def reset(self) -> None:
        """Nothing is kept."""

    @torch.inference_mode()
    def classify(
        self, x: NDArray[np.float32], types: NDArray[np.int64], severities: NDArray[np.float32]
    ) -> NDArray[np.int64]:
        """See `Rival`."""
        return self._module(_to_torch(x)).argmax(1).numpy()


class AllModels:
    """A whole model for each type, chosen by the told type; no upper bound, as each was only trained on for a while.

    Args:
        clean: the model for clean frames.
        robust: one for each of `CORRUPTIONS`, in that order.
    """

    def __init__(self, clean: nn.Module, robust: Sequence[nn.Module]) -> None:
        if len(robust) != len(CORRUPTIONS):
            raise InputError(f"expected a model for each of the {len(CORRUPTIONS)} corruptions, got {len(robust)}")
        self.name = "all_models"
        self._models = [Fixed(self.name, module) for module in (clean, *robust)]
        self.carried_bytes = sum(model.carried_bytes for model in self._models)
        self.identity = hashlib.sha256("".join(model.identity for model in self._models).encode()).hexdigest()

    def reset(self) -> None:
        """Nothing is kept."""

    def classify(
        self, x: NDArray[np.float32], types: NDArray[np.int64], severities: NDArray[np.float32]
    ) -> NDArray[np.int64]:
        """See `Rival`; each frame goes through the model of its type."""
        classes = np.empty(len(x), np.int64)
        for kind in np.unique(types):
            own = np.flatnonzero(types == kind)
            classes[own] = self._models[kind + 1].classify(x[own], types[own], severities[own])
        return classes


class AdaptedNorm(nn.Module):
    """BatchNorm with statistics (N·source + n·batch) / (N + n) for a batch of n images (Schneider et al. 2020, eq. 1).

    Args:
        source: the trained layer; its tensors are shared, not copied.
        prior: N, how many images the source statistics count as; 0 takes the batch's alone (Nado et al. 2020).
    """

    def __init__(self, source: nn.BatchNorm2d, prior: float) -> None:
        super().__init__()
        self.source, self.prior = source, prior

    def forward(self, x: Tensor) -> Tensor:
        """Normalise float32 (n, C, H, W)."""
        own = self.source
        if self.prior == 0:
            if x.numel() == x.shape[1]:
                raise InputError(
                    "bn_batch, tent and tent_scaled take BatchNorm's statistics from the batch, and this model has one "
                    "value a channel for a single image; take batches of more (--batch 64), the last one included"
                )
            return F.batch_norm(x, None, None, own.weight, own.bias, training=True, eps=own.eps)
        # Up to 20 times as fast as torch.var_mean over three dimensions, channels last on a CPU.
        flat = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        mean = flat.mean(0)
        variance = (flat.square().mean(0) - mean.square()).clamp_(min=0)
        share = len(x) / (self.prior + len(x))
        mean = own.running_mean.lerp(mean, share)
        variance = own.running_var.lerp(variance, share)
        return F.batch_norm(x, mean, variance, own.weight, own.bias, training=False, eps=own.eps)


def adapt_norms(module: nn.Module, prior: float) -> nn.Module:
    """Put an `AdaptedNorm` in the place of every BatchNorm, in place."""
    norms = _batch_norms(module)
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if any(child is norm for norm in norms):
                setattr(parent, name, AdaptedNorm(child, prior))
    return module


class Tent:
    """Entropy minimisation over γ and β of every BatchNorm, online; the answers are those before the step.

    Args:
        name: of the method.
        module: with BatchNorm; taken over.
        scaled: whether the rate is in proportion to the batch; else it is the published one whatever the batch.
    """

    def __init__(self, name: str, module: nn.Module, scaled: bool = False) -> None:
        self.name, self._scaled = name, scaled
        norms = _batch_norms(module)
        self._module = adapt_norms(_prepared(module), prior=0)
        self._adapted = [parameter for norm in norms for parameter in (norm.weight, norm.bias)]
        for parameter in self._adapted:
            parameter.requires_grad_(True)
        self._initial = [parameter.detach().clone() for parameter in self._adapted]
        # Beside the model: γ and β to go back to, their gradients, and Adam's two moments.
        self.identity = _digest(self._module)
        self.carried_bytes = _size(self._module) + 4 * _bytes_of(self._adapted)
        self._optimiser = torch.optim.Adam(self._adapted, lr=TENT_RATE, betas=(0.9, 0.999), weight_decay=0.0)

    @torch.no_grad()
    def reset(self) -> None:
        """Bring the trained γ and β back, bit for bit, and a fresh optimiser."""
        for parameter, initial in zip(self._adapted, self._initial, strict=True):
            parameter.copy_(initial)
        self._optimiser.zero_grad(set_to_none=True)
        self._optimiser.state.clear()

    def classify(
        self, x: NDArray[np.float32], types: NDArray[np.int64], severities: NDArray[np.float32]
    ) -> NDArray[np.int64]:
        """See `Rival`; the batch is adapted to afterwards."""
        logits = self._module(_to_torch(x))
        log_share = logits.log_softmax(1)
        entropy = -(log_share.exp() * log_share).sum(1).mean()
        self._optimiser.zero_grad(set_to_none=True)
        entropy.backward()
        self._optimiser.param_groups[0]["lr"] = TENT_RATE * (len(x) / TENT_BATCH if self._scaled else 1)
        self._optimiser.step()
        return logits.detach().argmax(1).numpy()


def make_rival(name: str, bundle: Bundle, models: RivalModels) -> Rival:
    """One method by its name.

    Args:
        name: one of `RIVALS` or `COMPARED`.
        bundle: whose model it starts from.
        models: the trained models.

    Raises:
        InputError: if the name is unknown, or a model is not trained yet.
    """
    if name in ("std", "augmented"):
        return Fixed(name, fold_batchnorm(models.unfolded() if name == "std" else models.augmented()))
    if name == "std_unfolded":
        return Fixed(name, models.unfolded())
    if name == "always":
        return Fixed(name, _averaged(bundle, fold_batchnorm(models.unfolded())))
    if name == "all_models":
        robust = [fold_batchnorm(models.robust(corruption)) for corruption in CORRUPTIONS]
        return AllModels(fold_batchnorm(models.unfolded()), robust)
    if name in ("bn_batch", "bn_prior"):
        return Fixed(name, adapt_norms(models.unfolded(), PRIOR_IMAGES if name == "bn_prior" else 0))
    if name in ("tent", "tent_scaled"):
        return Tent(name, models.unfolded(), scaled=name == "tent_scaled")
    raise InputError(f"unknown rival {name!r}; known: {', '.join((*RIVALS, *COMPARED))}")


@torch.no_grad()
def _averaged(bundle: Bundle, folded: nn.Module) -> nn.Module:
    """The folded model with all signatures averaged, for good; as `PatchableModel.apply` rounds the strengths."""
    alpha = round(1 / len(bundle.signatures.names) / ALPHA_STEP) * ALPHA_STEP
    own = dict(folded.named_parameters())
    for name in bundle.signatures.names:
        for tensor, delta in bundle.signatures.get(name).items():
            own[tensor] += alpha * torch.from_numpy(delta)
    return folded


def rival_methods(bundle: Bundle, work: Path, names: Sequence[str] = RIVALS) -> list[Rival]:
    """The rivals, from the models that `RivalModels.train_all` left in `work`.

    Raises:
        InputError: if a name is unknown, or a model is not trained yet.
    """
    models = RivalModels(bundle, None, work)
    return [make_rival(name, bundle, models) for name in names]


def time_methods(
    make: Mapping[str, Callable[[], Method]],
    sample: Sample,
    batch: int,
    *,
    baseline: str = "std",
    repeats: int = 3,
    rounds: int = 7,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Time of each method per frame, interleaved with the baseline; threads are as the process has them.

    Args:
        make: makes each method, the baseline among them, anew in each repeat.
        sample: frames that batches are taken from in turn.
        batch: frames at once, no more than the sample has.
        baseline: what the ratios are to.
        repeats, rounds: as `rws.benchmarks.common.interleave.interleave` has them.
        seed: of the order.

    Returns:
        For each method `ms` per frame (median over the rounds), `ratio` to the baseline in the same rounds and its
        95 % interval `low`, `high`.

    Raises:
        InputError: if the sample is smaller than the batch.
    """
    if not 0 < batch <= len(sample[0]):
        raise InputError(f"a batch of {batch} of {len(sample[0])} frames: give at least as many frames")
    rng = random.Random(seed)
    measured: dict[str, Measured] = {}
    base: list[Block] = []
    for _ in range(repeats):
        runs = {name: _blocks(method(), sample, batch) for name, method in make.items()}
        cases = {name: run for name, run in runs.items() if name != baseline}
        base += interleave(runs[baseline], cases, rounds, rng, measured)
    result = {baseline: (float(np.median([block.typical() for block in base])), 1.0, 1.0, 1.0)}
    result |= {name: (float(np.median(found.typical())), *found.ratio()) for name, found in measured.items()}
    return {
        name: {key: round(value, 4) for key, value in zip(("ms", "ratio", "low", "high"), result[name], strict=True)}
        for name in make
    }


def _blocks(method: Method, sample: Sample, batch: int) -> Callable[[], Block]:
    """What runs one block of a method and gives its milliseconds per frame."""
    starts = range(0, len(sample[0]) - batch + 1, batch)
    position = 0

    def once() -> float:
        nonlocal position
        x, types, severities = (part[starts[position] : starts[position] + batch] for part in sample)
        position = (position + 1) % len(starts)
        before = time.perf_counter()
        method.classify(x, types, severities)
        return 1e3 * (time.perf_counter() - before)

    method.reset()
    guess = float(np.median([once() for _ in range(3)]))
    settle, count = settling_frames(guess), frames_per_block(guess, 0)

    def run() -> Block:
        for _ in range(settle):
            once()
        ms = np.array([once() for _ in range(count)]) / batch
        return Block(ms, np.zeros(count, bool))

    return run


@dataclass(frozen=True)
class MethodMemory:
    """Bytes of memory of a method in a process of its own, one thread.

    Args:
        held: private memory that it holds between frames, beyond Python, its packages and the bundle's description.
        peak: the most that it takes on top while it classifies a batch.
    """

    held: int
    peak: int


def measure_memory(engine: str, name: str, bundle: Bundle, work: Path, batch: int) -> MethodMemory:
    """Memory of a method in a fresh process; Linux only (see `rws.benchmarks.common.memory.can_measure`).

    Raises:
        RwsError: if the process fails.
    """
    given = (engine, name, str(bundle.path), str(work), str(batch))
    command = python_command("from rws.benchmarks.baselines.methods import main; main()", *given)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        raise RwsError(f"the process that measures the memory of {name!r} failed: {reason}")
    return MethodMemory(**json.loads(done.stdout))


def measure_cost(
    bundle: Bundle, work: Path, sample: Sample, batches: Sequence[int] = (1, 64), repeats: int = 3, rounds: int = 7
) -> dict[str, Any]:
    """Time and memory of every method per frame, one thread; ratios are to `std` on the same engine.

    Rivals and ours run on Torch; ours also on ONNX Runtime, which is what `auto` takes on a CPU. Ours go frame by frame
    whatever the batch, so they have batch 1 only.

    Args:
        bundle: the bundle.
        work: folder of the rivals' models.
        sample: at least as many frames as the largest batch.
        batches: batch sizes.
        repeats, rounds: see `time_methods`.

    Returns:
        `rows`, each with `engine`, `method`, `batch`; `ms`, `ratio`, `low`, `high` as `time_methods` gives them;
        `carried`, bytes of weights and states that the device has to have, by their size; and on Linux `held`, `peak`
        (see `MethodMemory`).

    Raises:
        InputError: if a model is not trained yet, or the sample is too small.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = []
    try:
        for batch in batches:
            for engine, names in ENGINES.items():
                here = [name for name in names if batch == 1 or name not in OURS]
                if here[1:]:
                    rows += _cost_rows(engine, here, bundle, work, sample, batch, repeats, rounds)
    finally:
        torch.set_num_threads(threads)
    return {"threads": 1, "rows": rows}


def _cost_rows(
    engine: str, names: list[str], bundle: Bundle, work: Path, sample: Sample, batch: int, repeats: int, rounds: int
) -> list[dict[str, Any]]:
    models = RivalModels(bundle, None, work)
    make = {name: partial(make_method, engine, name, bundle, models) for name in names}
    times = time_methods(make, sample, batch, repeats=repeats, rounds=rounds)
    rows = []
    for name in names:
        row = {"engine": engine, "method": name, "batch": batch} | times[name]
        row["carried"] = _carried(name, make[name](), bundle)
        if can_measure():
            row |= asdict(measure_memory(engine, name, bundle, work, batch))
        rows.append(row)
    return rows


def make_method(engine: str, name: str, bundle: Bundle, models: RivalModels) -> Method:
    """A method for the measurement of time and memory, one thread.

    Args:
        engine: a key of `ENGINES`.
        name: one of that engine's.
        bundle, models: as in `make_rival`.
    """
    if engine == "torch" and name not in OURS:
        return make_rival(name, bundle, models)
    from rws.benchmarks.streams.run import Ours

    return Ours(name, bundle, bundle.model(ModelOptions(engine, threads=1, provider="cpu")), bundle.oracle(threads=1))


def _carried(name: str, method: Method, bundle: Bundle) -> int:
    files = {file: entry.bytes for file, entry in bundle.manifest.files.items()}
    found: int = sum(files.values()) if name in OURS else getattr(method, "carried_bytes", files[MODEL])
    return found


def _take_what_packages_take(x: Tensor) -> None:
    """Import and run once what only some methods use, lest they be charged for Python packages."""
    from rws.benchmarks.streams import run as streams  # noqa: F401
    from rws.edge.onnx import torchvision_compat  # noqa: F401  # onnx2torch imports torchvision

    import onnx2torch  # noqa: F401  # isort: skip

    layer = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    F.batch_norm(layer(x), None, None, training=True).sum().backward()
    torch.optim.Adam(layer.parameters()).step()


def main() -> None:
    """Measure this process: `sys.argv` holds the arguments of `measure_memory`; prints a `MethodMemory` as JSON."""
    engine, name, path, work, batch = sys.argv[1:]
    torch.set_num_threads(1)
    bundle = Bundle.load(path)
    size, count = bundle.manifest.input.height, int(batch)
    x = np.random.default_rng(0).random((count, 3, size, size), np.float32)
    types = np.arange(count) % (1 + len(CORRUPTIONS)) - 1
    severities = np.where(types < 0, 0, 5).astype(np.float32)
    _take_what_packages_take(_to_torch(x))
    give_back_unused()
    before = private_bytes()
    method = make_method(engine, name, bundle, RivalModels(bundle, None, Path(work)))
    for _ in range(3):
        method.classify(x, types, severities)
    give_back_unused()
    held = private_bytes()
    # From here on the kernel counts the peak anew (proc(5), clear_refs).
    Path("/proc/self/clear_refs").write_text("5")
    resident = status_bytes("VmRSS:", _STATUS)
    for _ in range(3):
        method.classify(x, types, severities)
    peak = status_bytes("VmHWM:", _STATUS)
    print(json.dumps(asdict(MethodMemory(held - before, peak - resident))))
