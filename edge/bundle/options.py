"""How a model runs: the options that travel together from the command line to the session."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelOptions:
    """How a bundle's model runs.

    Args:
        backend: "onnx" for ONNX Runtime, "torch" for Torch (needs the extra `torch`).
        threads: inside an operator; None leaves the choice to the backend. For Torch it holds for the whole process.
        provider: "cpu", "cuda", with ONNX Runtime also "tensorrt" or a provider's full name; "auto" is CUDA if it
            works, and else the CPU.
        strategy: how the weights are updated; see `OnnxModel` and `TorchModel`.
    """

    backend: str = "onnx"
    threads: int | None = None
    provider: str = "auto"
    strategy: str = "auto"
