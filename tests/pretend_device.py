"""A device that is the CPU under another name, to find out on any machine what a GPU would object to or wait for.

Its tensors hold tensors of the CPU, so that what is computed there can be compared to the bit.  Operations between it and
the CPU are refused, as a GPU refuses them, and what makes the program wait for a GPU, as far as the package or its usual
networks might do it, is written down.
To be imported in a process of its own: Torch knows one such device, for good.
"""

from __future__ import annotations

import traceback
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
WAITS: list[tuple[str, str]] = []
"""Operations that made the program wait, and the line of the package that asked for them."""

_COPIES = ("aten._to_copy.default", "aten.copy_.default")
_SHOW = ("_local_scalar_dense", "equal", "nonzero", "_unique", "masked_select", "repeat_interleave", "bincount")
_MASKED = ("index", "index_put", "index_put_", "_index_put_impl_")


class Away(torch.Tensor):
    """A tensor on the device; what it holds is on the CPU."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Away:
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=torch.device(NAME, 0),
        )  # fmt: skip
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def tolist(self) -> Any:
        WAITS.append(("tolist", _line()))
        return self.held.tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    def numpy(self, *args: Any, **options: Any) -> Any:
        raise TypeError("can't convert a tensor on the device to numpy; use .cpu() first.")


class Pretend(TorchDispatchMode):
    """While this is on, the device can be used."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def pin_memory(values: torch.Tensor) -> torch.Tensor:
    """What stands for the method of tensors, which needs a GPU: a copy that is known as pinned."""
    copied: Any = values.clone()
    copied.pinned = True
    return copied


def _there(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [entry for entry in tree_leaves((args, kwargs)) if isinstance(entry, torch.Tensor)]
    away = [entry for entry in tensors if isinstance(entry, Away)]
    device, name = kwargs.get("device"), str(func)
    if name.startswith("aten.to."):  # of what ends in a copy; seen whole in inference mode
        with Pretend():
            return func.decompose(*args, **kwargs)
    if not away and not _there(device):
        return func(*args, **kwargs)
    if name in _COPIES:
        source, result = (args[0], _there(device) if device is not None else bool(away))
        if name == "aten.copy_.default":
            source, result = args[1], isinstance(args[0], Away)
        asked = kwargs.get("non_blocking") or (name == "aten.copy_.default" and len(args) > 2 and args[2])
        unwaited = asked and result and getattr(source, "pinned", False)  # nothing else is copied while the program goes on
        if result != isinstance(source, Away) and not unwaited:
            WAITS.append((f"copy {'to' if result else 'from'} the device", _line()))
    else:
        result = _there(device) if device is not None else True
        strangers = [tuple(entry.shape) for entry in tensors if not isinstance(entry, Away) and entry.ndim]
        if away and strangers:
            raise RuntimeError(f"{name}: expected all tensors on one device, found {strangers} on the CPU.")
        kind = name.split(".")[1]
        masks = kind in _MASKED and any(
            entry.dtype in (torch.bool, torch.uint8) for entry in tree_leaves(args[1]) if entry is not None
        )
        if kind.startswith(_SHOW) or masks:
            WAITS.append((name, _line()))
    if _there(device):
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if kwargs.get("pin_memory"):
        kwargs = {**kwargs, "pin_memory": False}
    known = {id(entry.held): entry for entry in away}
    out = func(*tree_map(_held, args), **tree_map(_held, kwargs))

    def place(entry: Any) -> Any:
        if not isinstance(entry, torch.Tensor) or not result:
            return entry
        return known.get(id(entry)) if id(entry) in known else Away(entry)

    return tree_map(place, out)


def _held(entry: Any) -> Any:
    return entry.held if isinstance(entry, Away) else entry


def _line() -> str:
    """The innermost line of the package on the way here."""
    for frame in reversed(traceback.extract_stack()):
        if "/thermodiff/learned/" in frame.filename:
            return f"{frame.filename.rsplit('/thermodiff/', 1)[1]}: {frame.line}"
    return "elsewhere"


class _Device:
    """What Torch asks a kind of device for."""

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        pass

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16]


_setup_privateuseone_for_python_backend(NAME, _Device())
