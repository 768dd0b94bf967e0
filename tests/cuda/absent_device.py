"""Trace what a program does on a CUDA device, on a machine that has none.

    with absent_cuda(capability=(9, 0)) as trace:      # before anything else imports torch
        ...
    trace.kernels, trace.waits, trace.uploads, trace.refusals

`FakeTensorMode` carries shapes, dtypes and devices through every operator and computes nothing.
Two things that a CPU build of torch lacks for `cuda`, a device guard and hooks, come from
`absent_device.cpp`, compiled once for each version of torch. Every operator on the device is a
kernel unless it returns a view; every read of a device value by the host is a wait, recorded with
its line. The variable-length kernel's own conditions are checked here, since its meta function
checks none of them.

What cannot be seen: values, time, memory, races.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

SOURCE = Path(__file__).with_name("absent_device.cpp")


def load_guard() -> None:
    """Compile the guard if this version of torch has none yet, and load it ahead of torch."""
    if "torch" in sys.modules:
        raise RuntimeError("the guard has to be loaded before torch is imported")
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    home = Path(spec.origin).parent
    version = (home / "version.py").read_text(encoding="utf-8")
    tag = f"{abs(hash_of(version + SOURCE.read_text(encoding='utf-8'))):x}"
    library = Path(tempfile.gettempdir()) / f"absent-cuda-{tag}.so"
    if not library.exists():
        _compile(home, library)
    for path in (home / "lib" / "libtorch_global_deps.so", library):
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def hash_of(text: str) -> int:
    """The same in every process."""
    import zlib

    return zlib.crc32(text.encode())


def _compile(home: Path, library: Path) -> None:
    include = home / "include"
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        flags = ["-O0", "-std=c++20", "-fPIC", "-shared", f"-I{include}"]
        flags += [f"-I{include}/torch/csrc/api/include"]
        libraries = [f"-L{home / 'lib'}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{home / 'lib'}"]
        command = ["g++", *flags, str(SOURCE), *libraries, "-o", str(made)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        made.replace(library)


load_guard()

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

HALF = (torch.float16, torch.bfloat16)
NO_KERNEL = {
    "aten.detach",
    "aten.empty",
    "aten.empty_like",
    "aten.empty_strided",
    "aten.lift_fresh",
    "aten.new_empty",
    "aten.new_empty_strided",
    "aten._reshape_alias",
    "aten._unsafe_view",
    "prim.device",
}


class Place(NamedTuple):
    """Something that happened, and the line of ours that made it happen."""

    what: str
    line: str


class Trace(TorchDispatchMode):
    """Operators on the device as they come out of autograd and autocast.

    Attributes:
        capability: Of the card that is imitated.
        kernels: Launches by operator.
        waits: Reads of device values by the host.
        uploads: Copies from host to device; `what` is `blocking` or `asynchronous`.
        downloads: Copies from device to host that nobody waits for; those that block are waits.
        attention: Calls by kernel: `varlen`, or what scaled_dot_product_attention would choose.
        widened: Products of half precision that are written in float32.
        refusals: What the kernel's C++ code would refuse.
    """

    def __init__(self, capability: tuple[int, int]) -> None:
        super().__init__()
        self.capability = capability
        self.clear()

    def clear(self) -> None:
        """Forget everything so far."""
        self.kernels: Counter[str] = Counter()
        self.waits: list[Place] = []
        self.uploads: list[Place] = []
        self.downloads = 0
        self.attention: Counter[str] = Counter()
        self.widened = 0
        self.refusals: list[str] = []

    def wait(self, what: str) -> None:
        """The host waits for the device here."""
        self.waits.append(Place(what, calling_line()))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = str(func.overloadpacket)
        if name == "aten.to":  # in inference mode it arrives whole: what it is made of is seen
            with self:
                return func.decompose(*args, **kwargs)
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        reads_device = any(x.device.type == "cuda" for x in inputs)
        made_up = self._value_for_host(name, inputs, reads_device)
        if made_up is not None:
            return made_up
        if "_varlen_attn" in name:
            self.attention["varlen backward" if "backward" in name else "varlen"] += 1
            self.refusals += refusals(name, args, self.capability)
        result = func(*args, **kwargs)
        outputs = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        if name in ("aten._to_copy", "aten.copy_"):
            self._copy(name, inputs, outputs, kwargs)
        if name == "aten.mm" and inputs[0].dtype in HALF and outputs[0].dtype == torch.float32:
            self.widened += 1
        on_device = reads_device or any(x.device.type == "cuda" for x in outputs)
        if on_device and name not in NO_KERNEL and not returns_view(func):
            self.kernels[name] += 1
        return result

    def _value_for_host(self, name: str, inputs: list[Any], reads_device: bool) -> Any:
        """A value where the host asks for one: there is none to read."""
        if name == "aten._local_scalar_dense":
            if reads_device:
                self.wait("item")
            return one_of(inputs[0].dtype)
        if not reads_device:
            return None
        if name in ("aten.equal", "aten.is_nonzero"):
            self.wait(name)
            return True
        if name == "aten.nonzero":
            self.wait(name)
            return torch.empty(1, inputs[0].dim(), dtype=torch.int64, device="cuda")
        if name in ("aten.masked_select", "aten._unique2", "aten.unique_dim"):
            self.wait(name)
            return torch.empty(1, dtype=inputs[0].dtype, device="cuda")
        return None

    def _copy(self, name: str, inputs: list[Any], outputs: list[Any], kwargs: Any) -> None:
        source = inputs[-1] if name == "aten.copy_" else inputs[0]
        route = (source.device.type, outputs[0].device.type)
        if route == ("cuda", "cpu") and kwargs.get("non_blocking"):
            self.downloads += 1
        elif route == ("cuda", "cpu"):
            self.wait(f"{name} to the host")
        elif route == ("cpu", "cuda") and source.numel() > 0:
            kind = "asynchronous" if kwargs.get("non_blocking") else "blocking"
            self.uploads.append(Place(kind, calling_line()))


def one_of(dtype: torch.dtype) -> float | bool | int:
    """A value of the Python type that a dtype is read as."""
    return 1.0 if dtype.is_floating_point else (True if dtype == torch.bool else 1)


def returns_view(func: Any) -> bool:
    """Whether an operator's result aliases its input and nothing is written."""
    aliases = [r.alias_info for r in func._schema.returns if r.alias_info is not None]
    return bool(aliases) and not any(alias.is_write for alias in aliases)


def calling_line() -> str:
    """`file:line function` of the innermost frame that is neither torch's nor this module's."""
    for frame in reversed(traceback.extract_stack()):
        inside = ("/torch/", "contextlib", __file__)
        if not any(part in frame.filename for part in inside):
            return f"{'/'.join(Path(frame.filename).parts[-3:])}:{frame.lineno} {frame.name}"
    return "unknown"


def refusals(name: str, args: Any, capability: tuple[int, int]) -> list[str]:
    """Conditions of the variable-length kernel (flash_api.cpp of torch) that a call breaks."""
    backward = "backward" in name
    q, k, v = args[1:4] if backward else args[:3]
    offsets = args[6:8] if backward else args[3:5]
    conditions = {
        "a card of capability 8.0 or more": capability >= (8, 0),
        "float16 or bfloat16": q.dtype in HALF,
        "one dtype for q, k and v": q.dtype == k.dtype == v.dtype,
        "(tokens, heads, head_dim)": all(x.dim() == 3 for x in (q, k, v)),
        "a contiguous last dimension": all(x.stride(-1) == 1 for x in (q, k, v)),
        "head_dim a multiple of 8, at most 256": q.shape[-1] % 8 == 0 and q.shape[-1] <= 256,
        "values as wide as keys": v.shape[-1] == q.shape[-1],
        "heads a multiple of key heads": q.shape[1] % k.shape[1] == 0,
        "int32 contiguous offsets": all(
            x.dtype == torch.int32 and x.is_contiguous() and x.numel() >= 2 for x in offsets
        ),
        "as many key as query sequences": offsets[0].numel() == offsets[1].numel(),
        "one device": len({x.device for x in (q, k, v, *offsets)}) == 1,
    }
    if backward:
        conditions["a gradient of q's dtype"] = args[0].dtype == q.dtype
        conditions["a gradient contiguous in its last dimension"] = args[0].stride(-1) == 1
    way = "backward" if backward else "forward"
    return [f"{way}: needs {condition}" for condition, holds in conditions.items() if not holds]


def chosen_by_sdpa(q: Any, k: Any, mask: Any, causal: bool, capability: tuple[int, int]) -> str:
    """The kernel that scaled_dot_product_attention takes on CUDA (sdp_utils.cpp of torch 2.13)."""
    half = q.dtype in HALF
    width = q.shape[-1]
    preferred = torch.backends.cuda.cudnn_sdp_enabled() and capability[0] in (9, 10)
    if preferred and half and width % 8 == 0 and width <= 128:
        return "cudnn"
    square = q.shape[2] == k.shape[2]
    if capability >= (8, 0) and half and mask is None and width <= 256 and (square or not causal):
        return "flash"
    return "efficient" if q.shape[1] == k.shape[1] else "math"


def traced_sdpa(plain: Callable[..., Any], trace: Trace) -> Callable[..., Any]:
    """scaled_dot_product_attention that records the kernel a card would take."""

    def sdpa(query: Any, key: Any, value: Any, attn_mask: Any = None, *rest: Any, **kw: Any) -> Any:
        if query.device.type == "cuda":
            if torch.is_autocast_enabled("cuda"):
                dtype = torch.get_autocast_dtype("cuda")
                query, key, value = (x.to(dtype) for x in (query, key, value))
            causal = kw.get("is_causal", False)
            kind = chosen_by_sdpa(query, key, attn_mask, causal, trace.capability)
            trace.attention[kind] += 1
        return plain(query, key, value, attn_mask, *rest, **kw)

    return sdpa


def _replacements(trace: Trace) -> dict[tuple[Any, str], Any]:
    """What torch answers about its devices while there is one to imitate."""
    import torch.cuda.amp.common as amp
    import torch.optim.optimizer as optimizer
    import torch.utils._foreach_utils as foreach

    capability = trace.capability
    state = torch.zeros(16, dtype=torch.uint8)
    card = {
        "major": capability[0],
        "minor": capability[1],
        "name": "absent",
        "total_memory": 80 << 30,
    }
    properties = type("Properties", (), {**card, "multi_processor_count": 132})()
    cuda: dict[str, Callable[..., Any]] = {
        "_lazy_init": lambda: None,
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "empty_cache": lambda: None,
        "get_device_capability": lambda device=None: capability,
        "get_device_name": lambda device=None: "absent",
        "get_device_properties": lambda device=None: properties,
        "get_rng_state": lambda device="cuda": state.clone(),
        "init": lambda: None,
        "is_available": lambda: True,
        "is_bf16_supported": lambda *args, **kwargs: capability >= (8, 0),
        "is_initialized": lambda: True,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "max_memory_allocated": lambda device=None: 0,
        "mem_get_info": lambda device=None: (79 << 30, 80 << 30),
        "memory_allocated": lambda device=None: 0,
        "memory_stats": lambda device=None: {},
        "reset_peak_memory_stats": lambda device=None: None,
        "set_device": lambda device: None,
        "set_rng_state": lambda new_state, device="cuda": None,
        "synchronize": lambda device=None: trace.wait("synchronize"),
    }

    class Event:
        """Of a stream; the host waits where it synchronizes with one."""

        def __init__(self, **options: Any) -> None: ...

        def record(self) -> None: ...

        def synchronize(self) -> None:
            trace.wait("event")

    plain_tolist = torch.Tensor.tolist

    def tolist(self: torch.Tensor) -> Any:
        if not isinstance(self, FakeTensor):
            return plain_tolist(self)
        if self.device.type == "cuda":
            trace.wait("tolist")
        value: Any = one_of(self.dtype)
        for size in reversed(self.shape):
            value = [value] * size
        return value

    return {
        **{(torch.cuda, name): function for name, function in cuda.items()},
        (amp, "amp_definitely_not_available"): lambda: False,
        (torch.Tensor, "tolist"): tolist,
        (torch.cuda, "Event"): Event,
        # Page-locked memory is the device's business too.
        (torch.Tensor, "pin_memory"): lambda self: self,
        (torch.backends.cuda, "is_flash_attention_available"): lambda: True,
        (F, "scaled_dot_product_attention"): traced_sdpa(F.scaled_dot_product_attention, trace),
        # Fake parameters cannot be swapped while in use: models are made on the device and stay.
        (torch.nn.Module, "to"): lambda self, *args, **kwargs: self,
        (torch.nn.Module, "cpu"): lambda self: self,
        # Copies of storages, which fakes cannot give.
        (FakeTensor, "__deepcopy__"): lambda self, memo: self.clone(),
        (foreach, "_foreach_supported_types"): [*foreach._foreach_supported_types, FakeTensor],
        (optimizer, "_foreach_supported_types"): [*optimizer._foreach_supported_types, FakeTensor],
        # It asks whether there is a device, and would put real tensors on it.
        (FakeTensorMode, "avoid_device_init"): property(lambda self: True),
    }


@contextlib.contextmanager
def absent_cuda(capability: tuple[int, int] = (9, 0)) -> Iterator[Trace]:
    """Imitate one CUDA device of a compute capability, and trace what is done on it."""
    trace = Trace(capability)
    replaced = _replacements(trace)
    before = {(owner, name): vars(owner).get(name) for owner, name in replaced}
    with FakeTensorMode(allow_non_fake_inputs=True), trace:
        for (owner, name), value in replaced.items():
            setattr(owner, name, value)
        try:
            yield trace
        finally:
            for (owner, name), value in before.items():
                if value is None:  # it was inherited
                    delattr(owner, name)
                else:
                    setattr(owner, name, value)
