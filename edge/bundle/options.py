"""How a model runs: the options that travel together from the command line to the session."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelOptions:
    """How a bundle's model runs."""

    backend: str = "onnx"  # "onnx" for ONNX Runtime, "torch" for Torch (needs the extra `torch`)
    threads: int | None = None  # inside an operator; None: the backend's choice. For Torch: of the whole process
    provider: str = "auto"  # "cpu", "cuda", for ONNX also "tensorrt" or a full name; "auto": CUDA if it works, else CPU
    strategy: str = "auto"  # how the weights are updated; see `OnnxModel` and `TorchModel`
