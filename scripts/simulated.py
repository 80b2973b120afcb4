"""A simulated accelerator, `sim:0`: real values on the CPU, with the rules of a GPU.

What raises on CUDA raises here: operations between its tensors and the CPU's, generators of the CPU, `.numpy()`.
What makes the host wait for a GPU (reading a number, copies, shapes that depend on values, indexing by lists) is
counted by file and line. Not covered: kernels, autocast policies, memory, streams, several devices.

    with simulated() as waits:
        launch(recipe, cfg)
    print(waits.report())
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

__all__ = ["SIM", "Waits", "simulated"]

aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default, aten._foreach_copy_.default}
"""What may have tensors of both sides."""
PUTS = {aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default, aten._unsafe_index_put.default}
VALUE_DEPENDENT = {"nonzero", "masked_select", "unique", "_unique2", "unique_consecutive", "unique_dim", "equal"}
"""Operations whose result has a size, or a type, that the device has to tell."""
LENIENT = ("_foreach", "_fused", "_amp")
"""Of optimizers: step counters may lie on the CPU."""


class Waits:
    """Where the host waited, and how often."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.inside = False
        """Only what happens while this is set is counted."""

    def add(self, what: str) -> None:
        """Note a wait here."""
        if self.inside:
            self.counts[_place(), what] += 1

    def report(self) -> str:
        """A line for each place."""
        return "\n".join(f"{count:6d}  {what:22} {place}" for (place, what), count in self.counts.most_common())


_waits = Waits()


def _place() -> str:
    """File and line of the innermost frame that is not torch's or ours."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if "/recombine/" in name and "site-packages" not in name:
            return f"{name.rpartition('/recombine/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


class Sim(torch.Tensor):
    """A tensor of the device; `held` has its values."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, real: torch.Tensor, requires_grad: bool = False) -> Sim:
        wrapper: Any = torch.Tensor._make_wrapper_subclass(
            *(cls, real.size()),
            **{"strides": real.stride(), "storage_offset": real.storage_offset(), "dtype": real.dtype},
            **{"layout": real.layout, "device": SIM, "requires_grad": requires_grad},
        )
        wrapper.held = real
        return wrapper

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Sim({self.held})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            copy = Sim(self.held.detach().clone()).requires_grad_(self.requires_grad)
            if getattr(self, "_is_param", False):
                copy._is_param = True  # type: ignore[attr-defined]
            memo[id(self)] = copy
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.detach().__reduce_ex__(protocol)

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert sim tensor to numpy; use Tensor.cpu() first ({_place()})")

    __array__ = numpy

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __getitem__(self, index: Any) -> Any:
        return torch.Tensor.__getitem__(self, _device_index(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        torch.Tensor.__setitem__(self, _device_index(index), value)

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(function, args, kwargs or {})


def _device_index(index: Any) -> Any:
    """Lists and arrays among indices have to be copied to the device."""

    def moved(part: Any) -> Any:
        if not isinstance(part, list | np.ndarray):
            return part
        _waits.add("index by a list")
        return Sim(torch.as_tensor(part))

    return tuple(map(moved, index)) if isinstance(index, tuple) else moved(index)


def _is_sim(device: Any) -> bool:
    return device is not None and torch.device(device).type == "sim"


def _call(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation with tensors of the device among its arguments, or one that makes some."""
    tensors = [value for value in tree_iter((args, kwargs)) if isinstance(value, torch.Tensor)]
    ours = [value for value in tensors if isinstance(value, Sim)]
    wanted = kwargs.get("device")
    _refuse(function, args, kwargs, ours, [value for value in tensors if not isinstance(value, Sim)])
    if function is aten._local_scalar_dense.default:
        _waits.add("a number is read")
        return args[0].held.item()
    _count(function, args, wanted, ours)
    real_args, real_kwargs = tree_map(lambda value: value.held if isinstance(value, Sim) else value, (args, kwargs))
    stays = bool(ours) if wanted is None else _is_sim(wanted)
    if stays and wanted is not None:
        real_kwargs["device"] = torch.device("cpu")
    real_kwargs |= {"pin_memory": False} if real_kwargs.get("pin_memory") else {}
    made = function(*real_args, **real_kwargs)
    if not stays:
        return made
    known = {id(value.held): value for value in ours}
    given = {id(value) for value in tensors}
    return tree_map(lambda value: _wrapped(value, known, given), made)


def _wrapped(value: Any, known: dict[int, Sim], given: set[int]) -> Any:
    """A result as a tensor of the device; what was changed in place stays the tensor it was."""
    if not isinstance(value, torch.Tensor) or isinstance(value, Sim) or id(value) in given:
        return value
    return known.get(id(value)) if id(value) in known else Sim(value)


def _refuse(function: Any, args: Any, kwargs: dict[str, Any], ours: list[Sim], others: list[torch.Tensor]) -> None:
    """Raise what CUDA would."""
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type == "cpu" and (ours or _is_sim(kwargs.get("device"))):
        raise RuntimeError(f"Expected a 'sim' device type for generator but found 'cpu' [{function}] at {_place()}")
    if function is aten.index.Tensor:
        places = [index for index in args[1] if isinstance(index, torch.Tensor)]
        if not isinstance(args[0], Sim) and any(isinstance(index, Sim) for index in places):
            raise RuntimeError(f"indices should be on the same device as the indexed tensor (cpu) at {_place()}")
        return  # indices of the CPU are copied
    if not ours or function in COPIES or function._schema.name.split("::")[1].startswith(LENIENT):
        return
    strangers = [value for value in others if value.dim() > 0 and value.device.type == "cpu"]
    if function in PUTS:
        strangers = [value for value in strangers if value is args[2]]
    if strangers:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found sim:0 and cpu [{function}] at {_place()}"
        )


def _count(function: Any, args: Any, wanted: Any, ours: list[Sim]) -> None:
    """Note what makes the host wait."""
    name = function._schema.name.split("::")[1]
    if ours and name in VALUE_DEPENDENT:
        _waits.add(name)
    if function is aten.index.Tensor and ours:
        places = [index for index in args[1] if isinstance(index, torch.Tensor)]
        if any(index.dtype in (torch.bool, torch.uint8) for index in places):
            _waits.add("index by a mask")
        if any(not isinstance(index, Sim) for index in places):
            _waits.add("index of the CPU")
    crosses = function is aten.copy_.default and isinstance(args[0], Sim) != isinstance(args[1], Sim)
    if crosses and (isinstance(args[1], Sim) or args[1].dim() > 0):
        _waits.add("copy to the CPU" if isinstance(args[1], Sim) else "copy to the device")
    if function is aten._to_copy.default and wanted is not None and bool(ours) != _is_sim(wanted):
        _waits.add("copy to the CPU" if ours else "copy to the device")


class _Mode(TorchDispatchMode):
    """Factories that are asked for the device."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _is_sim(kwargs.get("device")) or any(isinstance(value, Sim) for value in tree_iter((args, kwargs))):
            return _call(function, args, kwargs)
        return function(*args, **kwargs)


class _Backend:
    """What torch asks a backend."""

    inside = False
    """Whether a block of `simulated` runs: elsewhere DataParallel and its kind must not find the device."""
    is_initialized = staticmethod(lambda: True)
    _is_in_bad_fork = staticmethod(lambda: False)
    is_available = classmethod(lambda cls: cls.inside)
    current_device = staticmethod(lambda: 0)
    device_count = staticmethod(lambda: 1)
    manual_seed_all = staticmethod(lambda seed: None)
    get_amp_supported_dtype = staticmethod(lambda: [torch.float16, torch.bfloat16])


def _empty(size: Any, *, dtype: Any = None, memory_format: Any = None, **_: Any) -> Sim:
    return Sim(torch.empty(size, dtype=dtype, memory_format=memory_format or torch.contiguous_format))


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Sim:
    _waits.add("made of Python numbers")
    return Sim(torch.empty_strided(size, stride, dtype=dtype))


def _copy(target: Any, source: Any, non_blocking: bool = False) -> Any:
    (target.held if isinstance(target, Sim) else target).copy_(source.held if isinstance(source, Sim) else source)
    return target


backend_registration._setup_privateuseone_for_python_backend("sim", backend_module=_Backend())
SIM = torch.device("sim:0")
_library = torch.library.Library("aten", "IMPL")
_library.impl("empty.memory_format", _empty, "PrivateUse1")
_library.impl("empty_strided", _empty_strided, "PrivateUse1")
_library.impl("copy_", _copy, "PrivateUse1")
_library.impl("_copy_from", lambda source, target, non_blocking=False: _copy(target, source), "PrivateUse1")


@contextmanager
def simulated() -> Iterator[Waits]:
    """Let runs take the device; yields where the host waits in training steps after the first of each training.

    The loader's own copies of a batch to the device are left out: on CUDA they are pinned and overlap.
    """
    from recombine.engine.engine import Engine
    from recombine.run import launch

    global _waits
    before, update, _waits = _waits, Engine._update, Waits()
    waits = _waits
    outside, _Backend.inside = _Backend.inside, True

    def watched(self: Any, training: Any, batches: Any) -> None:
        def fetched() -> Iterator[Any]:
            while True:
                waits.inside = False
                batch = next(batches)
                waits.inside = training.step > 0
                yield batch

        try:
            update(self, training, fetched())
        finally:
            waits.inside = False

    opened = launch.open_device
    launch.open_device = lambda name, **_: nullcontext((SIM, 0, 1))  # type: ignore[assignment]
    Engine._update = watched  # type: ignore[method-assign]
    try:
        with _Mode():
            yield waits
    finally:
        launch.open_device, Engine._update = opened, update  # type: ignore[method-assign]
        _waits, _Backend.inside = before, outside
