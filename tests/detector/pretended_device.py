"""A pretended accelerator in pure Python: tensors that name another device and keep their values in CPU tensors.

It needs no GPU and no driver. It refuses what an accelerator refuses (tensors of two devices in one operator), and
counts what costs time there: launches, and moments at which the host waits for the device. Values are a CPU's, so that
results can be compared bit for bit. Over meta tensors it has shapes alone, which makes the launches of a step at full
size known in seconds.
"""

import functools
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils import _foreach_utils, backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "pretended"
DETECTOR = Path(__file__).resolve().parents[2] / "detector"

# Operators whose result the host needs: a value, or a shape that depends on values.
_READS = {"_local_scalar_dense", "equal", "nonzero", "bincount", "masked_select", "_unique2", "unique_dim"}
# Views that the schema does not show, tensors that nothing fills, and hints.
_NO_KERNEL = {"_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
_MAY_INDEX_FROM_THE_HOST = {"index", "index_put", "index_put_"}


class Cost:
    """Launches, host waits and uploads since it was made, or since `clear`."""

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        """Host waits as 'file:line reason', at the innermost line of the detector."""
        self.launches: Counter[str] = Counter()
        """Operators that compute on the device, by name: neither views nor allocations; one on a list counts once."""
        self.uploads = 0
        """Copies from the host that nothing waits for."""

    def clear(self) -> None:
        """Count from 0 again."""
        self.waits.clear()
        self.launches.clear()
        self.uploads = 0

    def wait(self, reason: str) -> None:
        """Count a wait."""
        frames = (f for f in reversed(traceback.extract_stack()) if Path(f.filename).is_relative_to(DETECTOR))
        frame = next(frames, None)
        place = f"{Path(frame.filename).name}:{frame.lineno}" if frame else "outside the detector"
        self.waits[f"{place} {reason}"] += 1


class Pretended(Tensor):
    """A tensor that says that it lies on the pretended device; `held` has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Self:
        made: Self = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=device(),
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self) -> Any:
        """The values on the host: torch has no `tolist` of a subclass."""
        return self.to("cpu").tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """TypeError, as of any tensor that is not on the CPU."""
        raise TypeError(f"can't convert {self.device} tensor to numpy")

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"Pretended({self.held!r})"

    @classmethod
    def __torch_dispatch__(
        cls, operator: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(_costs[-1] if _costs else Cost(), operator, args, dict(kwargs or {}))


_costs: list[Cost] = []
_casts: dict[int, Tensor] = {}  # weights in bfloat16 by their id, until autocast ends


class _Mode(TorchDispatchMode):
    """Catches what makes tensors on the device from none, or from tensors of the host."""

    def __torch_dispatch__(
        self, operator: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        asked = kwargs.get("device")
        if (asked is not None and torch.device(asked).type == NAME) or _pretended((args, kwargs)):
            return _run(_costs[-1], operator, args, kwargs)
        return operator(*args, **kwargs)


@functools.cache
def device() -> torch.device:
    """The device, registered with torch once a process."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
    # `torch.tensor(numbers, device=...)` makes its tensor below every mode, by these two operators.
    _LIBRARY.impl("empty_strided", _empty_strided)
    _LIBRARY.impl("_copy_from", _copy_from)
    _ALL_OPERATORS.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    _AUTOCAST.impl("conv2d", _conv2d_in_bfloat16)
    return torch.device(NAME, 0)


_LIBRARY = torch.library.Library("aten", "IMPL", "PrivateUse1")
_ALL_OPERATORS = torch.library.Library("_", "IMPL")
_AUTOCAST = torch.library.Library("aten", "IMPL", "AutocastPrivateUse1")
_AUTOCAST_KEY = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)


def _empty_strided(size: Any, stride: Any, *, dtype: torch.dtype | None = None, **_: object) -> Pretended:
    return Pretended(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))


def _conv2d_in_bfloat16(images: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any) -> Tensor:
    """The only operator of the network that autocast runs in bfloat16; each weight is cast once until autocast ends."""
    with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_KEY):
        weights = [None if tensor is None else _cast_once(tensor) for tensor in (weight, bias)]
        return torch.ops.aten.conv2d(images.to(torch.bfloat16), *weights, *rest)


def _cast_once(weight: Tensor) -> Tensor:
    if id(weight) not in _casts:
        _casts[id(weight)] = weight.to(torch.bfloat16)
    return _casts[id(weight)]


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    return _copied_into(_costs[-1], target, source, non_blocking)


class _Backend(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


@contextmanager
def pretended() -> Iterator[Cost]:
    """Inside the block tensors can be made on, moved to and taken from `device()`; the cost is counted."""
    device()
    supported: list[type] = _foreach_utils._foreach_supported_types
    clear_casts_of_torch = torch.clear_autocast_cache

    def clear_casts() -> None:
        _casts.clear()
        clear_casts_of_torch()

    _costs.append(cost := Cost())
    supported.append(Pretended)
    torch.clear_autocast_cache = clear_casts  # autocast calls it at its end
    try:
        # The threads that autograd starts are for the devices that were known at its first backward pass.
        with _Mode(), torch.autograd.set_multithreading_enabled(False):
            yield cost
    finally:
        torch.clear_autocast_cache = clear_casts_of_torch
        supported.remove(Pretended)
        _costs.remove(cost)


def shapes_only(tensor: Tensor) -> Pretended:
    """A tensor without values on the device, with the shape and strides of another; results of it have none either."""
    held = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    return Pretended(held)


def hollow(module: nn.Module) -> None:
    """Replace the parameters and buffers of a module by tensors on the device that have no values."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            empty = nn.Parameter(shapes_only(parameter.detach()), requires_grad=parameter.requires_grad)
            part.register_parameter(name, empty)
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, shapes_only(buffer))


def values(tensor: Tensor) -> Tensor:
    """The tensor on the host, at no cost."""
    return tensor.held if isinstance(tensor, Pretended) else tensor


def _pretended(tree: object) -> list[Pretended]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Pretended)]


def _run(cost: Cost, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    name = operator._schema.name.partition("::")[2]
    if name == "_to_copy":
        return _copied(cost, operator, args[0], kwargs)
    if name == "copy_":
        return _copied_into(cost, args[0], args[1], kwargs.get("non_blocking", bool(args[2:] and args[2])))
    ours = _pretended((args, kwargs))
    _refuse_two_devices(cost, name, args, kwargs)
    _count(cost, name, operator, args)
    asked = kwargs.get("device")
    on_device = bool(ours) if asked is None else torch.device(asked).type == NAME
    no_values = any(tensor.held.is_meta for tensor in ours)
    if no_values and name.startswith("_fused_"):  # an update has no meta kernel, and no shape to find
        return None
    held_args, held_kwargs = tree_map(_without_values if no_values else _held, (args, kwargs))
    if asked is not None:
        held_kwargs["device"] = torch.device("meta" if no_values and on_device else "cpu")
    found = operator(*held_args, **held_kwargs)
    if operator._schema.is_mutable:
        return _same_tensors(found, (held_args, held_kwargs), (args, kwargs))
    return tree_map(_wrap, found) if on_device else found


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Pretended) else value


def _without_values(value: Any) -> Any:
    return _held(value).to("meta") if isinstance(value, Tensor) else value


def _wrap(value: Any) -> Any:
    return Pretended(value) if isinstance(value, Tensor) and not isinstance(value, Pretended) else value


def _copied(cost: Cost, operator: Any, source: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """`Tensor.to`: between the devices, or to another type or format on one of them."""
    target = kwargs.pop("device", None)
    to_device = isinstance(source, Pretended) if target is None else torch.device(target).type == NAME
    if to_device and isinstance(source, Pretended):
        cost.launches["_to_copy"] += 1
    elif to_device and kwargs.get("non_blocking"):
        cost.uploads += 1
    else:
        cost.wait("upload" if to_device else "read")
    found: Tensor = operator(values(source), **kwargs)
    return Pretended(found) if to_device else found


def _copied_into(cost: Cost, target: Tensor, source: Tensor, in_background: bool) -> Tensor:
    if isinstance(target, Pretended) and isinstance(source, Pretended):
        cost.launches["copy_"] += 1
    elif isinstance(target, Pretended) and in_background:
        cost.uploads += 1
    else:
        cost.wait("upload" if isinstance(target, Pretended) else "read")
    values(target).copy_(values(source))
    return target


def _refuse_two_devices(cost: Cost, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    of_host = [leaf for leaf in leaves if not isinstance(leaf, Pretended) and leaf.dim() > 0]
    if not of_host or len(of_host) == len(leaves):
        return
    if name in _MAY_INDEX_FROM_THE_HOST and all(any(leaf is i for i in tree_leaves(args[1])) for leaf in of_host):
        cost.wait("index on the host")
        return
    raise RuntimeError(f"{name}: expected all tensors on one device, found {device()} and cpu")


def _count(cost: Cost, name: str, operator: Any, args: tuple[Any, ...]) -> None:
    returns = operator._schema.returns
    is_view = any(value.alias_info is not None and not value.alias_info.is_write for value in returns)
    if not is_view and name not in _NO_KERNEL:
        cost.launches[name] += 1
    if name in _READS:
        cost.wait(name)
    if name in _MAY_INDEX_FROM_THE_HOST and any(
        isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1]
    ):
        cost.wait("mask as an index")


def _same_tensors(found: Any, held: Any, given: Any) -> Any:
    """An operator in place or with `out` returns the very tensors that it was given."""
    originals = dict(zip(map(id, tree_leaves(held)), tree_leaves(given), strict=True))
    return tree_map(lambda value: originals.get(id(value), value), found)
