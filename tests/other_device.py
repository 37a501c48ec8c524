"""A pretended GPU: tensors that live on the CPU, say that they are elsewhere, and refuse to be mixed with those of the CPU.

What runs here without complaint puts every tensor where it belongs, and would do so on a real GPU; no speed is pretended. Built on PyTorch's experimental
hooks for devices written in Python, in use as `with other_device(): ...`.
"""
import sys
from contextlib import contextmanager

import safetensors.torch
import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map


class _Module(backend_registration._DummyBackendModule):
    "What PyTorch asks of a device beside arithmetic."
    def get_rng_state(self, device=None): return torch.zeros(1, dtype=torch.uint8)
    def set_rng_state(self, state, device=None): pass
    def manual_seed(self, seed): pass
    def get_amp_supported_dtype(self): return [torch.bfloat16]

backend_registration._setup_privateuseone_for_python_backend('other', _Module())
OTHER = torch.device('other', 0)


class Elsewhere(torch.Tensor):
    "Says that it is on the GPU; `inside` is where its numbers are."
    @staticmethod
    def __new__(cls, inside):
        return torch.Tensor._make_wrapper_subclass(cls, inside.size(), strides=inside.stride(), storage_offset=inside.storage_offset(),
                                                   dtype=inside.dtype, layout=inside.layout, device=OTHER, requires_grad=False)

    def __init__(self, inside): self.inside = inside
    def __repr__(self): return f'Elsewhere({self.inside})'

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None): return _run(func, args, kwargs or {})


def is_other(device): return device is not None and torch.device(device).type == 'other'
def unwrap(x): return x.inside if isinstance(x, Elsewhere) else x
def wrap(x): return Elsewhere(x) if isinstance(x, torch.Tensor) and not isinstance(x, Elsewhere) else x

_CROSSING = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default, torch.ops.aten._local_scalar_dense.default}
_INDEXING = {torch.ops.aten.index.Tensor, torch.ops.aten._unsafe_index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default}   # row numbers may be the CPU's


def _run(func, args, kwargs):
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), torch._C.DispatchKey.CompositeImplicitAutograd):
        with Dispatch(): return func.decompose(*args, **kwargs)      # `conv2d`, `to`: made of others, which are looked at in turn
    flat = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    ours = [x for x in flat if isinstance(x, Elsewhere)]
    if ours and func not in _CROSSING and any(not isinstance(x, Elsewhere) and x.ndim for x in flat):     # single numbers may come from anywhere
        if func not in _INDEXING or not isinstance(args[0], Elsewhere): raise RuntimeError(f'{func} was given tensors of two devices, other:0 and cpu')
    device, there = kwargs.get('device'), bool(ours)
    if 'device' in kwargs and device is not None: there, kwargs = is_other(device), {**kwargs, 'device': torch.device('cpu')}
    kwargs = {k: v for k, v in kwargs.items() if k != 'pin_memory'}
    found = func(*tree_map(unwrap, args), **tree_map(unwrap, kwargs))
    if func is torch.ops.aten.copy_.default: return args[0]
    for before in ours:                                     # what works in place gives back the same object
        if found is before.inside: return before
    return tree_map(wrap, found) if there else found


class Dispatch(TorchDispatchMode):
    "Sees every operation, also those that only make a tensor."
    def __torch_dispatch__(self, func, types, args=(), kwargs=None): return _run(func, args, kwargs or {})


def _undispatched(function):
    "Reading files passes through calls that no dispatcher understands."
    def call(*args, **kwargs):
        with _disable_current_modes(): return function(*args, **kwargs)
    return call


@contextmanager
def other_device():
    "Inside, the lab's device is the pretended one."
    tensor, places = torch.tensor, [m for name, m in sys.modules.items() if name.startswith('beit_lab')]
    changes = {'lab_device': lambda: OTHER, 'load_file': _undispatched(safetensors.torch.load_file), 'safe_open': _undispatched(safetensors.safe_open)}
    changed = [(m, name, getattr(m, name), new) for m in places for name, new in changes.items() if hasattr(m, name)]
    changed += [(torch, 'tensor', tensor, lambda data, *, device=None, **kwargs: tensor(data, **kwargs).to(device or 'cpu')),   # these two pass dispatchers by
                (torch.Tensor, 'new_tensor', torch.Tensor.new_tensor, lambda self, data, **kwargs: tensor(data, **{'dtype': self.dtype, **kwargs}).to(self.device))]
    def enter(self):                                                             # inference tensors cannot be wrapped; without gradients is near enough
        self.quiet = torch.no_grad()
        self.quiet.__enter__()
    changed += [(torch.inference_mode, '__enter__', torch.inference_mode.__enter__, enter),
                (torch.inference_mode, '__exit__', torch.inference_mode.__exit__, lambda self, *problem: self.quiet.__exit__(*problem))]
    overwritten = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)              # else a parameter would keep its old class
    for place, name, _, new in changed: setattr(place, name, new)
    try:
        with Dispatch(): yield OTHER
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwritten)
        for place, name, old, _ in changed: setattr(place, name, old)
