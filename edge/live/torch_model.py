"""A patchable model on Torch: its parameters are channels_last views of the arena's working copy (on a GPU, of a copy).

`torch.compile` reads parameters as inputs and needs no second compilation after a patch. Freezing and
`torch.jit.optimize_for_inference` copy them and ignore patches; a module that went through either is refused.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rws.edge.live.arena import Arena, Signatures, Tensors, perturbed
from rws.edge.live.base import PatchableModel, as_batch, output_places, plain
from rws.edge.live.layout import plain_slots
from rws.edge.onnx.graph import clean_tensors, data_input, read_model
from rws.edge.onnx.int8 import is_quantised
from rws.errors import BundleError, InputError, UsageError, first_line

if TYPE_CHECKING:
    import torch

Arrays = Sequence[NDArray[np.float32]]
STRATEGIES = ("torch", "torch_compile", "torch_cuda_graph")
_TEST_LENGTH = 224  # pixels, where a module leaves height or width free
_TEST_TOLERANCE = 1e-2  # of the change in the outputs: above what TF32 rounds away, below what a stale tensor does
_REMEDY = "give a module whose patched parameters are neither frozen nor kept a second time"


class TorchModel(PatchableModel):
    """A model on Torch; see `PatchableModel`. Its parameters are written in place and never move.

    It is tested when it is made: changed weights must change the outputs as they do in the module that was given, and
    the clean weights must bring the clean outputs back, bit for bit. On a GPU convolutions round to TF32: the outputs
    agree with a CPU's to about 1e-3 of their range.

    Args:
        module: images (N, …) → a tensor or several, N free; taken over, in eval mode, on the device, channels_last.
        tensor_names: the patched tensors, in the order of the network.
        parameters: tensor name → the module's parameter of another name, where the names differ.
        image_shape: of one image; None stands for a free length, which is tested at 224 pixels.
        device: `cpu`, `cuda`, `cuda:1`, …; `auto` is CUDA where it works, and else the CPU.
        strategy: `torch`, eagerly (`auto`); `torch_compile`, which takes seconds to minutes to load and needs a C++
            compiler on the CPU; `torch_cuda_graph`, eager kernels recorded for a single image.
        dtype: of the images, by NumPy's name.

    Raises BundleError if a parameter is missing or not float32, or the module cannot be run or fails the test,
    InputError if the device or the strategy is unavailable.
    """

    def __init__(
        self,
        module: "torch.nn.Module",
        signatures: Signatures | None,
        tensor_names: Sequence[str],
        parameters: Mapping[str, str] | None = None,
        image_shape: Sequence[int | None] = (3, None, None),
        device: str = "auto",
        strategy: str = "auto",
        dtype: str = "float32",
    ) -> None:
        import torch

        self._torch = torch
        self._shape, self._dtype = tuple(image_shape), dtype
        self._outputs: tuple[int, ...] = ()  # which of the module's tensors `predict` gives; (): all
        self.strategy = STRATEGIES[0] if strategy == "auto" else strategy
        device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self._check_strategy(device)
        try:
            self._module = module.eval().to(device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"device {device!r} cannot be used ({first_line(error)}); try 'cpu'") from error
        self._device = torch.device(device)
        self.provider = str(self._device)
        self.description = f"{self.strategy} on {self.provider}: a patch is written into the module's own parameters"
        if self._device.type == "cpu":
            self.description += "; ONNX Runtime is faster on a CPU"
        own, renamed = dict(module.named_parameters()), parameters or {}
        self.parameter_names = tuple(renamed.get(name, name) for name in tensor_names)
        for name, parameter_name in zip(tensor_names, self.parameter_names, strict=True):
            if parameter_name not in own:
                raise BundleError(f"module has no parameter {name!r} to patch; it has {', '.join(own)}")
        if not tensor_names:
            raise BundleError("module: no tensor to patch is named; name at least one of its parameters")
        self._parameters = [own[name] for name in self.parameter_names]
        clean = {}
        for name, parameter in zip(tensor_names, self._parameters, strict=True):
            if parameter.dtype != torch.float32:
                raise BundleError(f"module: parameter {name!r} is {parameter.dtype}, expected torch.float32")
            clean[name] = parameter.detach().cpu().numpy().copy()
        high = 256 if dtype == "uint8" else 1
        size = (1, *(length or _TEST_LENGTH for length in self._shape))
        images = (high * np.random.default_rng(0).random(size, np.float32)).astype(dtype)
        self._run: Callable[[torch.Tensor], Any] = self._module
        weights, expected = self._expect(clean, images)
        self._share_memory(clean, signatures)
        try:
            self._run = self._runner(images)
            self._test(weights, expected, images)
        except RuntimeError as error:
            fault = f"cannot run it with the strategy {strategy!r} ({first_line(error)})"
            raise BundleError(f"module: Torch {fault}; take 'torch'") from error

    @classmethod
    def from_onnx(
        cls,
        model: str | Path | bytes,
        signatures: Signatures | None,
        tensor_names: Sequence[str],
        device: str = "auto",
        threads: int | None = None,
        strategy: str = "auto",
        outputs: Sequence[str] = (),
    ) -> "TorchModel":
        """Convert an ONNX model that went through `prepare`; see `to_torch`. `threads` hold for the whole process.

        Raises BundleError for an int8 model: one value that Torch rounds otherwise changes the outputs too much.
        """
        from rws.edge.onnx.torch_graph import to_torch

        proto = read_model(model)
        if kind := is_quantised(proto):
            raise BundleError(f"model: is {kind}, which Torch rounds otherwise; run it with ONNX Runtime")
        places = output_places([value.name for value in proto.graph.output], outputs)
        clean_tensors(proto, tensor_names)
        module, parameters = to_torch(proto, tensor_names)
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        given = data_input(proto)
        made = cls(module, signatures, tensor_names, parameters, given.shape[1:], device, strategy, given.dtype)
        made._outputs = places
        return made

    @property
    def module(self) -> "torch.nn.Module":
        """The module itself, whose parameters `parameter_names` are those that patches are written into."""
        return self._module

    def predict(self, x: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """Return the outputs for one image or several; see `PatchableModel.predict`."""
        batch = as_batch(x, self._shape, self._dtype)
        self._arena.settle()
        return self._outputs_of(batch)

    def _outputs_of(self, batch: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        with self._torch.inference_mode():
            found = self._run(self._torch.tensor(batch, device=self._device))
            found = (found,) if isinstance(found, self._torch.Tensor) else tuple(found)
            return tuple(plain(found[place].cpu().numpy()) for place in self._outputs or range(len(found)))

    def _numbers(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        return np.concatenate([output.ravel() for output in self._outputs_of(batch)]).astype(np.float32)

    def _check_strategy(self, device: str) -> None:
        kind = device.partition(":")[0]
        if kind not in ("cpu", "cuda"):
            raise UsageError(f"device is {device!r}, expected 'auto', 'cpu', 'cuda' or 'cuda:NUMBER'")
        if self.strategy not in STRATEGIES:
            raise UsageError(f"strategy is {self.strategy!r}, expected auto, {', '.join(STRATEGIES)}")
        if self.strategy == "torch_cuda_graph" and (kind == "cpu" or None in self._shape):
            found = f"strategy 'torch_cuda_graph' with device {device!r} and image_shape {self._shape}"
            raise InputError(f"{found}, expected a CUDA device and fixed lengths; take 'torch' or 'torch_compile'")

    def _share_memory(self, clean: Mapping[str, NDArray[np.float32]], signatures: Signatures | None) -> None:
        torch = self._torch
        for tensor in (*self._module.parameters(), *self._module.buffers(), *self._parameters):
            layout = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
            tensor.data = tensor.data.contiguous(memory_format=layout)
        slots = plain_slots({name: array.shape for name, array in clean.items()})
        for name, parameter in zip(clean, self._parameters, strict=True):
            order = torch.empty(parameter.numel(), dtype=torch.int32)
            order.as_strided(parameter.shape, parameter.stride()).copy_(torch.from_numpy(slots[name]))
            slots[name] = order.numpy()
        on_cpu = self._device.type == "cpu"
        self._arena = Arena(clean, signatures, slots, publish=None if on_cpu else self._publish)
        host = self._arena.flat
        self._memory = torch.from_numpy(host)
        if not on_cpu:
            self._pinned = self._memory.pin_memory()
            self._memory = self._memory.to(self._device)
        for view, parameter in zip(self._arena.views.values(), self._parameters, strict=True):
            offset = (view.ctypes.data - host.ctypes.data) // host.itemsize
            parameter.data = self._memory.as_strided(parameter.shape, parameter.stride(), offset)

    def _publish(self) -> None:
        # No need to wait: an earlier copy that still reads is followed by this one, the prediction comes after both.
        self._pinned.numpy()[:] = self._arena.flat
        self._memory.copy_(self._pinned, non_blocking=True)

    def _runner(self, images: NDArray[Any]) -> "Callable[[torch.Tensor], Any]":
        if self.strategy == "torch":
            return self._module
        if self.strategy == "torch_compile":
            # An environment may switch freezing on for everything.
            return self._torch.compile(self._module, options={"freezing": False})
        # The kernels of one image are recorded: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.
        cuda, eager = self._torch.cuda, self._module
        graph = cuda.CUDAGraph()
        with cuda.device(self._device), self._torch.inference_mode():
            image = self._torch.tensor(images, device=self._device)
            side = cuda.Stream()
            side.wait_stream(cuda.current_stream())
            with cuda.stream(side):
                for _ in range(3):
                    eager(image)
            cuda.current_stream().wait_stream(side)
            with cuda.graph(graph):
                outputs = eager(image)

        def run(batch: "torch.Tensor") -> Any:
            if len(batch) != 1:
                return eager(batch)
            image.copy_(batch)
            graph.replay()
            return outputs

        return run

    def _expect(self, clean: Tensors, images: NDArray[Any]) -> tuple[Arrays, Arrays]:
        weights = list(perturbed(clean).values())
        try:
            found = [self._numbers(images)]
            # From the deepest on: a block that ends with weights of zero hides those before them.
            for name, parameter, array in reversed(list(zip(clean, self._parameters, weights, strict=True))):
                self._write([parameter], [array])
                found.append(self._numbers(images))
                if np.array_equal(found[-1], found[-2]):
                    raise BundleError(f"module: parameter {name!r} does not reach its outputs; {_REMEDY}")
        except (RuntimeError, AttributeError, TypeError) as error:
            fault = f"cannot turn {images.dtype} {images.shape} into tensors ({first_line(error)})"
            raise BundleError(f"module: {fault}; give its image_shape, or wrap it") from error
        finally:
            self._write(self._parameters, clean.values())
        return weights, [found[0], found[-1]]

    def _test(self, weights: Arrays, expected: Arrays, images: NDArray[Any]) -> None:
        clean = self._numbers(images)
        self._write(self._parameters, weights)
        patched = self._numbers(images)
        self._arena.reset()
        again = self._numbers(images)
        change = np.abs(expected[1] - expected[0]).max()
        errors = [np.abs(clean - expected[0]).max(), np.abs(patched - expected[1]).max()]
        if not (max(errors) <= _TEST_TOLERANCE * change and again.tobytes() == clean.tobytes()):
            raise BundleError(f"module: patches do not reach its outputs as they should ({self.strategy}); {_REMEDY}")

    def _write(self, parameters: "Iterable[torch.nn.Parameter]", arrays: Iterable[NDArray[np.float32]]) -> None:
        with self._torch.inference_mode():
            for parameter, array in zip(parameters, arrays, strict=True):
                parameter.copy_(self._torch.from_numpy(array))
