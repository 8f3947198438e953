"""What `rws run` was asked for; see its help text."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rws.edge.bundle.options import ModelOptions
from rws.edge.sources.base import Source
from rws.edge.sources.capture.decoding.checks import Checks
from rws.edge.sources.capture.protocol import NetworkOptions
from rws.edge.sources.open import check_repeatable, open_images, open_source
from rws.edge.sources.repeated import RepeatedSource
from rws.errors import UsageError
from rws.oracle.policy import PatchLimits

if TYPE_CHECKING:
    from rws.edge.mqtt import MqttOptions

PLACE = "{camera}"  # in the name of an output: stands for the name of each camera


@dataclass(frozen=True)
class FileOptions:
    """The files of results; one whose name has `{camera}` in it belongs to that camera alone."""

    jsonl: Path | None
    csv: Path | None
    save: Path | None

    def of(self, camera: str) -> "FileOptions":
        """Return the files of a camera."""
        if not camera:
            return self
        named = (path and Path(str(path).replace(PLACE, camera)) for path in (self.jsonl, self.csv, self.save))
        return FileOptions(*named)

    def named(self) -> Iterator[tuple[str, Path]]:
        """Yield the option and the path of each file that is wanted."""
        for name, path in vars(self).items():
            if path is not None:
                yield name, path


@dataclass(frozen=True)
class CameraOptions:
    """A camera of a run; its `name` is "" if it is the only one."""

    name: str
    source: tuple[str, ...]
    files: FileOptions
    independent: bool | None
    latest: bool | None
    corrupt: str | None
    oracle_every: int
    retries: int | None
    stall: float
    network: NetworkOptions
    checks: Checks
    label: str
    limits: PatchLimits
    max_fps: float | None

    def open(self, loop: bool) -> Source:
        """Open its source, which starts again at its end if `loop` is true; raises as `open_source`."""
        if not loop:
            return self._open()
        check_repeatable(self.source)
        return RepeatedSource(self._open)

    def _open(self) -> Source:
        if len(self.source) > 1:
            return open_images(self.source, "name each camera in a configuration file: [camera.NAME]", self.checks)
        return open_source(
            self.source[0],
            latest=self.latest,
            retries=self.retries,
            stall=self.stall,
            label=self.label or self.name,
            network=self.network,
            checks=self.checks,
        )


@dataclass(frozen=True)
class RunOptions:
    """A run; `reread` returns the cameras that its configuration file names now, and is None without such a file."""

    cameras: tuple[CameraOptions, ...]
    bundle: Path | None
    keys: tuple[Path, ...]  # public; () if any bundle may run
    model: ModelOptions
    serve: str | None
    token: str | None
    mqtt: "MqttOptions | None"
    events: Path | None
    on_event: str
    show: bool
    report: Path | None
    timings: bool
    watch: bool
    other_classes: bool
    limit: int | None  # frames of each camera
    loop: bool
    reread: Callable[[], tuple[CameraOptions, ...]] | None = None

    @property
    def several(self) -> bool:
        """Whether this is a run of named cameras, though it may have one of them only."""
        return self.cameras[0].name != ""

    def check(self) -> None:
        """Raise a `UsageError` if cameras cannot share what was asked for."""
        if self.show and self.several:
            raise UsageError("--show shows one camera; watch several with --serve")
        check_videos(self.cameras)


def check_videos(cameras: Sequence[CameraOptions]) -> None:
    """Raise a `UsageError` if two cameras have one video."""
    taken = set[Path]()
    for camera in cameras:
        path = camera.files.save
        if path is not None and path in taken:
            raise UsageError(f"{path}: is the video of two cameras; put {PLACE} into its name")
        taken |= {path} if path else set()


def camera_options(name: str, given: Mapping[str, Any]) -> CameraOptions:
    """Return a camera from the parameters of `rws run`; UsageError if it cannot be so."""
    files = FileOptions(*(given[key] and Path(given[key]) for key in ("jsonl", "csv", "save")))
    transport = getattr(given["rtsp_transport"], "value", given["rtsp_transport"])
    return CameraOptions(
        name=name,
        source=tuple(given["source"]),
        files=files.of(name),
        independent=given["independent"],
        latest=given["latest"],
        corrupt=given["corrupt"],
        oracle_every=given["oracle_every"],
        retries=given["retries"],
        stall=given["stall"],
        network=NetworkOptions(transport, given["poll"]),
        checks=Checks(given["max_pixels"], tuple(flaw for flaw in given["accept"].split(",") if flaw)),
        label=given["label"],
        limits=PatchLimits(given["leave_clean"], given["min_severity"]),
        max_fps=given["max_fps"],
    )


def named_cameras(options: CameraOptions) -> tuple[CameraOptions, ...]:
    """Return a camera for each source, named `camera1`, `camera2`, …"""
    return tuple(
        replace(options, name=name, source=(source,), files=options.files.of(name))
        for name, source in ((f"camera{number}", source) for number, source in enumerate(options.source, 1))
    )
