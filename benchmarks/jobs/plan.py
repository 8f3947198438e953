"""How long large work would take on a cluster: from seconds of a job measured here, its bytes, and a shared store."""

import time
from dataclasses import dataclass

import torch

from rws.benchmarks.common.tables import Record
from rws.training.corruptions import CORRUPTIONS
from rws.training.models.architectures import ModelSpec, build_model, fold_batchnorm, shallow_tensors
from rws.training.models.fit import to_input
from rws.training.signatures.tuned import train_only

NODES = (1, 8, 64, 512)
CORES = 16  # of a node
BANDWIDTH = 2e9  # bytes per second that the shared store gives to all nodes together
IMAGE_BYTES = 110_000  # of a JPEG of ImageNet; 150 GB / 1.28 million images
TRAIN_IMAGES, TEST_IMAGES, SEVERITIES, ARMS = 1_281_167, 50_000, 5, 4  # of ImageNet-1k and of a replay
SHARDS = (TEST_IMAGES, 1000)  # images that a job evaluates: a whole set, as today, and a part of one


@dataclass(frozen=True)
class Large:
    """A work of equal jobs of one core: how many, and seconds of computing and bytes to read of each."""

    name: str
    jobs: int
    seconds: float
    bytes: float

    def hours(self, nodes: int) -> tuple[float, str]:
        """Return hours, and what bounds them: the cores, the store, or the number of jobs."""
        at_once = min(self.jobs, nodes * CORES)
        waves = -(-self.jobs // at_once)
        compute, read = waves * self.seconds, self.jobs * self.bytes / BANDWIDTH
        bound = "store" if read > compute else ("jobs" if at_once == self.jobs else "cores")
        return max(compute, read) / 3600, bound


def measured_rates(architecture: str, size: int = 224, batch: int = 16, steps: int = 4) -> Record:
    """Return images per second of one core of this machine: a step of tuning the shallow layers, and an answer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.manual_seed(0)
        spec = ModelSpec(architecture, small_input=False)
        model = fold_batchnorm(build_model(spec, 1000)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        pixels = to_input(torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8))
        train_only(model, shallow_tensors(model, 5))

        def step() -> None:
            with torch.autocast("cpu", torch.bfloat16):
                found = model(pixels).float()
            torch.autograd.backward([found.square().mean()])

        def answer() -> None:
            with torch.inference_mode():
                model(pixels)

        rates: Record = {"architecture": architecture, "size": size}
        for name, run in (("tuned_per_s", step), ("answers_per_s", answer)):
            run()
            times = []
            for _ in range(steps):
                began = time.monotonic()
                run()
                times.append(time.monotonic() - began)
            rates[name] = round(batch / sorted(times)[len(times) // 2], 2)
    finally:
        torch.set_num_threads(threads)
    return rates


def plan(rates: Record, epochs: float = 0.1) -> list[Record]:
    """Return rows of hours by nodes: 19 signatures of one model, and its replay over ImageNet-C.

    `rates`: of `measured_rates`; `epochs` of ImageNet-1k that tune a signature.
    """
    name, images = rates["architecture"], epochs * TRAIN_IMAGES
    # A step of tuning runs the clean model, too.
    seconds = images / rates["tuned_per_s"] + images / rates["answers_per_s"]
    works = [Large(f"{name}: 19 signatures", len(CORRUPTIONS), seconds, images * IMAGE_BYTES)]
    for shard in SHARDS:
        jobs = len(CORRUPTIONS) * SEVERITIES * TEST_IMAGES // shard
        what = f"{name}: replay of ImageNet-C, {shard:,} images in a job"
        works.append(Large(what, jobs, shard * ARMS / rates["answers_per_s"], shard * IMAGE_BYTES))
    rows = []
    for work in works:
        found = {count: work.hours(count) for count in NODES}
        hours = {f"hours_{count}": round(hours, 2) for count, (hours, _) in found.items()}
        bounds = {f"bound_{count}": bound for count, (_, bound) in found.items()}
        rows.append({"work": work.name, "jobs": work.jobs, "job_s": round(work.seconds), **hours, **bounds})
    return rows
