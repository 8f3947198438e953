"""Clock, temperature and power of the machine, if it reports them: NVML, jtop on a Jetson, else psutil."""

import os
import platform
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # types-psutil is no dependency of ours
import torch

from rws.benchmarks.common.tables import Record

Readings = dict[str, float | None]
Reading = tuple[float | None, float | None, float | None]
"""Of clock, temperature and power: MHz, °C, W."""


class Sensors:
    """Reads MHz, °C, W of a Jetson (jtop), else, for CUDA, of the GPU (nvidia-ml-py), or of the CPU; None: unknown."""

    def __init__(self, device: str) -> None:
        self._device, self._stack = device, ExitStack()
        self._read: Callable[[], Reading] = _read_cpu if device == "cpu" else lambda: (None, None, None)

    def __enter__(self) -> "Sensors":
        with suppress(ImportError):
            from jtop import JtopException, jtop  # type: ignore[import-not-found]  # on a Jetson only

            with suppress(JtopException):
                self._read = partial(read_jetson, self._stack.enter_context(jtop()), self._device)
                return self
        if self._device == "cuda":
            with suppress(ImportError):
                import pynvml  # type: ignore[import-not-found]  # with an NVIDIA GPU only

                with suppress(pynvml.NVMLError):
                    pynvml.nvmlInit()
                    self._stack.callback(pynvml.nvmlShutdown)
                    self._read = partial(read_nvml, pynvml)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self) -> Readings:
        """Return the current readings: MHz, °C, W."""
        rounded = (None if value is None else round(value, 1) for value in self._read())
        return dict(zip(("clock_mhz", "temperature_c", "power_w"), rounded, strict=True))


def describe_platform(device: str) -> Record:
    """Describe the platform before anything is measured."""
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    affinity = psutil.Process().cpu_affinity() if hasattr(psutil.Process, "cpu_affinity") else ()
    return {
        "device": device_name(device),
        "cores": len(affinity) or os.cpu_count() or 1,
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "governor": governor.read_text().strip() if governor.is_file() else None,
        "load_average": [round(load, 2) for load in psutil.getloadavg()],
        "cuda": torch.version.cuda if device == "cuda" else None,
    }


def device_name(device: str) -> str:
    """Return the name of the GPU, of the board (from its device tree), or of the processor."""
    if device == "cuda":
        return str(torch.cuda.get_device_name())
    board, info = Path("/proc/device-tree/model"), Path("/proc/cpuinfo")
    if board.is_file():
        return board.read_text().strip("\0 \n")
    lines = info.read_text().splitlines() if info.is_file() else []
    found = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return found or platform.processor() or platform.machine()


def read_jetson(jetson: Any, device: str) -> Reading:
    """Return MHz, °C and W of a board, as `jtop` reads them."""
    units = jetson.gpu.values() if device == "cuda" else jetson.cpu["cpu"]
    clocks = [unit["freq"]["cur"] / 1e3 for unit in units if unit.get("freq")]
    temperatures = [sensor["temp"] for sensor in jetson.temperature.values() if sensor.get("online", True)]
    power = jetson.power.get("tot", {}).get("power")
    return max(clocks, default=None), max(temperatures, default=None), None if power is None else power / 1e3


def read_nvml(nvml: Any) -> Reading:
    """Return MHz, °C and W of the current GPU, as NVML reads them."""
    # By its UUID: NVML does not number devices as CUDA_VISIBLE_DEVICES does.
    uuid = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
    handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")

    def ask(question: Any, *arguments: Any) -> float | None:
        try:
            return float(question(handle, *arguments))
        except nvml.NVMLError:
            return None

    clock, power = ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM), ask(nvml.nvmlDeviceGetPowerUsage)
    temperature = ask(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU)
    return clock, temperature, None if power is None else power / 1e3


def _read_cpu() -> Reading:
    clock = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
    sensors = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
    temperatures = [sensor.current for group in sensors.values() for sensor in group]
    return (clock.current if clock else None), max(temperatures, default=None), None
