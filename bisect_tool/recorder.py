"""Records what a PyTorch run computed: every operation, every module call, and the tensors one asks for.

One self-contained file: Python 3.8, torch 1.13 and numpy are enough, nothing of the package is needed. Run as a program
it records a model's run into a bundle, ``python bisect_recorder.py model.py ckpt.pth --input s.pt -o a.trace``, as
``bisect-tool record`` does, which is built on the same classes; ``bisect-tool compare`` compares two of them.

Two sources are joined. *Global* module hooks tell which module call is running; hooks on the modules themselves would
switch off the fast path of ``nn.TransformerEncoder`` and raise on scripted modules. A ``TorchDispatchMode`` sees each
aten operation with its tensors, also those of scripted code, so that data flow is known exactly, and so that a held
tensor can be copied *before* an in-place operation overwrites it (a reference stored by a hook would be rewritten by
the next ``ReLU(inplace=True)``; copying everything would double the memory).

Example:
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU(inplace=True)).eval()
    >>> with torch.no_grad(), Recorder(model) as recorder:
    ...     out = recorder.run(torch.ones(1, 3))
    >>> [frame.path for frame in recorder.trace.frames]
    ['', '0', '1']
"""

import argparse
import contextlib
import hashlib
import importlib
import importlib.util
import json
import os
import platform
import random
import re
import shutil
import subprocess
import sys
import time
import tokenize
import types
import warnings
import weakref
import zipfile

import numpy as np
import torch
from torch.nn.modules import module as torch_module

try:
    from torch.utils._python_dispatch import TorchDispatchMode
except ImportError:  # older torch: module hooks alone, see Recorder
    TorchDispatchMode = None

# The package's own ``tap`` looks there too, whichever of the two files is recording.
SINKS = sys.modules.setdefault("_bisect_taps", types.ModuleType("_bisect_taps")).__dict__.setdefault("SINKS", [])


def tap(name, value):
    """Puts a step of preprocessing into the recording that is being made, if one is; returns ``value``."""
    for sink in SINKS:
        sink(name, value)
    return value


try:
    from torch._ops import HigherOrderOperator
except ImportError:  # torch 1.13

    class HigherOrderOperator:
        """Stands for what is not there."""


_TORCH_DIR = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_THIS_FILE = os.path.abspath(__file__)


# These return their operand under another Python object. torch adds some of them or not from run to run, and numbers of
# values must not depend on that.
_SAME = frozenset(("detach", "alias", "lift_fresh"))


class Value:
    """One tensor as it stood at one moment.

    Attributes:
        id: index into ``Trace.values``.
        shape, dtype: as in torch; the dtype as a short name; the shape of a nested tensor is None.
        producer: index of the operation that made it; -1 for inputs, weights and constants.
        kind: ``input`` | ``weight`` | ``constant`` | ``op``.
        dynamic: whether it depends on an input of the run.
        view: whether it shares memory with an operand of its producer.
    """

    __slots__ = ("id", "shape", "dtype", "producer", "kind", "dynamic", "view")

    def __init__(self, id, shape, dtype, producer, kind, dynamic, view=False):
        self.id = id
        self.shape = shape
        self.dtype = dtype
        self.producer = producer
        self.kind = kind
        self.dynamic = dynamic
        self.view = view


class Ref:
    """Stands for a value among the arguments of a taped operation."""

    __slots__ = ("id",)

    def __init__(self, id):
        self.id = id


class Op:
    """One aten operation. ``frame`` is the index of the innermost module call that was running.

    ``call``: the operator, its arguments and its keyword arguments, with a ``Ref`` for each tensor; None if no tape is
    kept. An ``alias_update`` is no operation: it says how both tensors lie in their memory, ``(size, stride, offset)``.
    ``body``: the outermost operator (``cond``, ``while_loop``) in whose body it ran; None outside of any.
    """

    __slots__ = ("index", "name", "frame", "inputs", "outputs", "source", "in_place", "call", "body")

    def __init__(self, index, name, frame, inputs, outputs, source, in_place):
        self.call = None
        self.body = None
        self.index = index
        self.name = name
        self.frame = frame
        self.inputs = inputs
        self.outputs = outputs
        self.source = source
        self.in_place = in_place


class Frame:
    """One call of one module: its operations are ``trace.ops[start:stop]``, those of its children included."""

    __slots__ = (
        "index",
        "path",
        "call",
        "type",
        "parent",
        "leaf",
        "start",
        "stop",
        "end",
        "outputs",
        "source",
        "opaque",
    )

    def __init__(self, index, path, call, type, parent, leaf, start, source):
        self.index = index
        self.path = path
        self.call = call
        self.type = type
        self.parent = parent
        self.leaf = leaf
        self.start = start
        self.stop = None
        self.end = None  # place in the order in which calls ended
        self.outputs = []  # (key, value id)
        self.source = source
        self.opaque = False


class Failure:
    """The operation in which a run ended: its name, the module call around it, and its tensors' dtypes and shapes."""

    def __init__(self, name, frame, tensors):
        self.name = name
        self.frame = frame
        self.tensors = tensors

    def __str__(self):
        where = "the model" if self.frame is None or not self.frame.path else self.frame.path
        kind = "" if self.frame is None else " (" + self.frame.type + ")"
        floats = sorted(set(dtype for dtype, _ in self.tensors if "float" in dtype))
        text = "operation " + self.name + " in " + where + kind
        if len(floats) > 1:
            return text + ": its tensors clash in dtype, " + " against ".join(floats)
        shown = ", ".join(dtype + str(list(shape)) for dtype, shape in self.tensors[:4])
        return text + (" on " + shown if shown else "")


class Trace:
    """What happened in one run: ``values``, ``ops`` in order of execution, module calls as ``frames``."""

    def __init__(self):
        self.values = []
        self.ops = []
        self.frames = []
        self.inputs = []  # (key, value id)
        self.outputs = []  # (key, value id)
        self.bodies = []  # (operator, value ids of its results), for each call outside of any other


def dtype_name(dtype):
    """Short name of a torch dtype, ``float32``."""
    return str(dtype).replace("torch.", "")


def _collect_tensors(item, path, found, seen):
    # Not a closure: one that calls itself is a cycle, and would keep every tensor until the garbage collector comes by.
    if isinstance(item, torch.Tensor):
        found.append((path, item))
        return
    if item is None or isinstance(item, (str, bytes, int, float, complex, bool)) or id(item) in seen:
        return
    if isinstance(item, dict):
        children = list(item.items())
    elif isinstance(item, (tuple, list)):
        # A named tuple goes by index too: exporters number its fields.
        children = list(enumerate(item))
    elif hasattr(item, "__dataclass_fields__"):
        children = [(name, getattr(item, name, None)) for name in item.__dataclass_fields__]
    elif isinstance(item, torch.nn.utils.rnn.PackedSequence):
        children = [("data", item.data)]
    else:
        return
    seen.add(id(item))
    for key, child in children:
        _collect_tensors(child, path + (key,), found, seen)
    seen.discard(id(item))


def flatten_tensors(obj):
    """Tensors inside nested containers, as a list of ``(key, tensor)``.

    A bare tensor has the key 0, a flat tuple integer keys, a flat dictionary or dataclass its own keys; deeper keys are
    joined with dots. ``None`` and everything that is no tensor is left out.
    """
    found = []
    _collect_tensors(obj, (), found, set())
    result = []
    for path, tensor in found:
        if not path:
            result.append((0, tensor))
        elif len(path) == 1:
            result.append((path[0] if isinstance(path[0], int) else str(path[0]), tensor))
        else:
            result.append((".".join(str(part) for part in path), tensor))
    return result


def _storage_key(tensor):
    """Identity of the memory behind a tensor, or None for tensors without a storage (sparse, some wrappers)."""
    try:
        if hasattr(tensor, "untyped_storage"):
            return tensor.untyped_storage()._cdata
        return tensor.storage()._cdata
    except (RuntimeError, NotImplementedError, AttributeError):
        return None


def _geometry(tensor):
    """How a tensor lies in its memory, or None for tensors without a storage."""
    try:
        return tuple(tensor.size()), tuple(tensor.stride()), tensor.storage_offset()
    except (RuntimeError, NotImplementedError):
        return None


class _OpInfo:
    """What the schema of an operator says, looked up once per operator."""

    __slots__ = ("name", "written", "view")

    def __init__(self, func):
        schema = getattr(func, "_schema", None)
        if schema is None:
            self.name, self.written, self.view = str(func), (), False
            return
        name = schema.name.split("::")[-1]
        self.written = tuple(
            (position, argument.name)
            for position, argument in enumerate(schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        )
        self.name = name[:-1] if self.written and name.endswith("_") and not name.endswith("__") else name
        self.view = not self.written and any(
            result.alias_info is not None and not result.alias_info.is_write for result in schema.returns
        )


def _definition(module):
    """``file:line`` of a module's forward: who called the root says nothing about the model."""
    code = getattr(getattr(type(module), "forward", None), "__code__", None)
    return None if code is None else code.co_filename + ":" + str(code.co_firstlineno)


def _source_line():
    """``file:line`` of the innermost frame that belongs neither to torch nor to this file."""
    frame = sys._getframe(2)
    while frame is not None:
        filename = frame.f_code.co_filename
        if filename == _THIS_FILE and frame.f_code.co_name == "run":
            return None  # whoever starts the run is no line of the model
        if not filename.startswith(_TORCH_DIR) and filename != _THIS_FILE and not filename.startswith("<"):
            return filename + ":" + str(frame.f_lineno)
        frame = frame.f_back
    return None


class Recorder:
    """Context manager around runs of ``module``; the hooks are gone when it ends, also on error.

    Args:
        module: the root; paths are those of ``module.named_modules()``.
        on_value: called as ``on_value(value, tensor)`` as soon as a stage's tensor is complete: outputs of modules, and
            of operations between modules. The tensor may be overwritten later by the model: keep it with ``hold``.
        every_op: call ``on_value`` for the operations inside leaf modules too.
        tape: keep what each operation was called with, and hold what the run starts from (inputs, weights, constants), so
            that any part of it can be computed again.
    """

    def __init__(self, module, on_value=None, every_op=False, tape=False):
        self.module = module
        self.tape = tape
        self.on_value = on_value
        self.every_op = every_op
        self.trace = Trace()
        self._paths = {}
        for path, child in module.named_modules():
            self._paths.setdefault(id(child), path)
        # The root is never a leaf: operations directly in it are all there is to see of a model without children.
        self._leaf = {
            id(child): next(child.children(), None) is None and child is not module for child in module.modules()
        }
        self._weights = {id(t): name for name, t in list(module.named_parameters()) + list(module.named_buffers())}
        self._weight_storages = set()
        for tensor in list(module.parameters()) + list(module.buffers()):
            self._weight_storages.add(_storage_key(tensor))
        self._known = {}  # id(tensor) -> (weak reference, value id)
        self._last_write = {}  # storage -> (moment, value id)
        self._moment = 0
        self._born = {}  # value id -> moment
        self._geometries = {}  # id of a value that was written in place -> how it lies in its memory
        self._held = {}  # value id -> tensor
        self._held_by_storage = {}  # storage -> {value id}
        self._seen = set()  # value ids given to on_value
        self._calls = {}
        self._pending = []  # (value, tensor) not handed to on_value yet
        self._stack = []
        self._ended = 0
        self._infos = {}
        self._handles = []
        self._mode = None
        self._bodies = None
        self._busy = False
        self._by_hooks = TorchDispatchMode is None
        self._versions = {}  # value id -> how often the tensor had been written to, where no operation is seen
        self.failure = None  # of the first operation that raised: see Failure

    # -- life ---------------------------------------------------------------------------------------------------------

    def __enter__(self):
        self._handles = [torch_module.register_module_forward_pre_hook(self._before_module)]
        try:
            # Called after an exception too, which the model may catch.
            handle = torch_module.register_module_forward_hook(self._after_module, always_call=True)
        except TypeError:  # torch 1.13; there, what an exception leaves on the stack is dropped by the next module
            handle = torch_module.register_module_forward_hook(self._after_module)
        self._handles.append(handle)
        self._mode = _Mode(self) if TorchDispatchMode is not None else contextlib.nullcontext()
        self._bodies = _plain_bodies()
        try:
            self._bodies.__enter__()
            self._mode.__enter__()
        except BaseException:
            self._remove_hooks()
            raise
        return self

    def __exit__(self, kind, error, traceback):
        try:
            self._mode.__exit__(kind, error, traceback)
        finally:
            self._remove_hooks()
            # The callback often refers back to the recorder; held tensors must not wait for the garbage collector.
            self.on_value = None
            self._pending = []
            self._known.clear()
        return False

    def _remove_hooks(self):
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._bodies.__exit__(None, None, None)

    def run(self, *args, **kwargs):
        """Calls the module; its tensors among ``args`` and ``kwargs`` become the inputs of the trace."""
        named = flatten_tensors(args) + flatten_tensors(kwargs) if kwargs else flatten_tensors(args)
        for key, tensor in named:
            value = self._new_value(tensor, -1, "input", True)
            self.trace.inputs.append((key, value.id))
        output = self.module(*args, **kwargs)
        was_busy, self._busy = self._busy, True
        try:
            self.trace.outputs = [(key, self._value_of(tensor).id) for key, tensor in flatten_tensors(output)]
            self._deliver()
        finally:
            self._busy = was_busy
        return output

    # -- held tensors -------------------------------------------------------------------------------------------------

    def hold(self, value_id, tensor):
        """Keeps a value; it stays as it is even if the model overwrites the memory. Free it with ``release``."""
        self._held[value_id] = tensor.detach()
        key = _storage_key(tensor)
        if key is not None:
            self._held_by_storage.setdefault(key, set()).add(value_id)

    def held(self, value_id):
        """The kept tensor; KeyError if it is not kept."""
        return self._held[value_id]

    def is_held(self, value_id):
        return value_id in self._held

    def release(self, value_id):
        tensor = self._held.pop(value_id, None)
        if tensor is not None:
            group = self._held_by_storage.get(_storage_key(tensor))
            if group is not None:
                group.discard(value_id)
                if not group:
                    del self._held_by_storage[_storage_key(tensor)]

    def held_ids(self):
        return list(self._held)

    def release_all(self):
        self._held.clear()
        self._held_by_storage.clear()

    def copy_before_write(self, tensor):
        """Makes copies of what is kept of a tensor's memory, which somebody is about to write to."""
        key = _storage_key(tensor)
        for value_id in self._held_by_storage.pop(key, ()):
            held = self._held.get(value_id)
            if held is not None:
                self._held[value_id] = held.clone()

    # -- values -------------------------------------------------------------------------------------------------------

    def _new_value(self, tensor, producer, kind, dynamic, view=False):
        try:
            shape = tuple(tensor.shape)
        except RuntimeError:  # nested tensors have none
            shape = None
        value = Value(len(self.trace.values), shape, dtype_name(tensor.dtype), producer, kind, dynamic, view)
        self.trace.values.append(value)
        self._bind(tensor, value.id)
        if self.tape and producer < 0:
            self.hold(value.id, tensor)
        return value

    def _bind(self, tensor, value_id, born=None):
        self._moment += 1
        self._born[value_id] = self._moment if born is None else born
        try:
            self._known[id(tensor)] = (weakref.ref(tensor), value_id)
        except TypeError:
            pass

    def _value_of(self, tensor):
        """The value that a tensor object stands for now."""
        entry = self._known.get(id(tensor))
        if self._by_hooks:
            return self._value_by_hooks(tensor, entry)
        if entry is None or entry[0]() is not tensor:
            storage = _storage_key(tensor)
            weight = id(tensor) in self._weights or (storage is not None and storage in self._weight_storages)
            return self._new_value(tensor, -1, "weight" if weight else "constant", False)
        value = self.trace.values[entry[1]]
        if self._last_write:
            write = self._last_write.get(_storage_key(tensor))
            if write is not None and write[0] > self._born[value.id]:
                # Somebody wrote through another view of the same memory: a new version, made of both.
                updated = self._record_op("alias_update", [value.id, write[1]], [tensor], None, False)[0]
                if self.tape:
                    self.trace.ops[-1].call = (_geometry(tensor), self._geometries.get(write[1]))
                return updated
        return value

    def _value_by_hooks(self, tensor, entry):
        """Where operations are not seen: a tensor that nobody knew was made in the run, and one written to is another."""
        version = getattr(tensor, "_version", 0)
        if entry is not None and entry[0]() is tensor and self._versions.get(entry[1], version) == version:
            return self.trace.values[entry[1]]
        if entry is None and id(tensor) in self._weights:
            return self._new_value(tensor, -1, "weight", False)
        value = self._new_value(tensor, -1, "op", True)
        self._versions[value.id] = version
        return value

    def _record_op(self, name, inputs, outputs, source, in_place, view=False):
        frame = self._stack[-1] if self._stack else -1
        op = Op(len(self.trace.ops), name, frame, inputs, [], source, in_place)
        op.body = getattr(self._mode, "body", None)
        self.trace.ops.append(op)
        dynamic = any(self.trace.values[i].dynamic for i in inputs)
        values = [self._new_value(tensor, op.index, "op", dynamic, view) for tensor in outputs]
        op.outputs = [value.id for value in values]
        return values

    # -- operations ---------------------------------------------------------------------------------------------------

    def _info(self, func):
        info = self._infos.get(func)
        if info is None:
            info = self._infos[func] = _OpInfo(func)
        return info

    def _operate(self, func, args, kwargs):
        if self._busy:
            return func(*args, **kwargs)
        self._busy = True
        try:
            # Before the operation, which may write into what is pending.
            self._deliver()
            info = self._info(func)
            tensors = [tensor for _, tensor in flatten_tensors(args)]
            if kwargs:
                tensors += [tensor for _, tensor in flatten_tensors(kwargs)]
            inputs = [self._value_of(tensor).id for tensor in tensors]
            written = []
            for position, name in info.written:
                target = args[position] if position < len(args) else kwargs.get(name)
                written += [tensor for _, tensor in flatten_tensors(target)]
            for tensor in written:
                self.copy_before_write(tensor)
            # Before the operation: afterwards what it wrote into is another value.
            call = (func, self._taped(args), self._taped(kwargs)) if self.tape else None
            try:
                result = func(*args, **kwargs)
            except Exception:
                if self.failure is None:
                    frame = self.trace.frames[self._stack[-1]] if self._stack else None
                    self.failure = Failure(info.name, frame, [(dtype_name(t.dtype), tuple(t.shape)) for t in tensors])
                raise
            if info.name in _SAME and isinstance(result, torch.Tensor) and len(inputs) == 1:
                self._bind(result, inputs[0], self._born[inputs[0]])
                return result
            outputs = [tensor for _, tensor in flatten_tensors(result)]
            outputs += [tensor for tensor in written if not any(tensor is other for other in outputs)]
            frame = self.trace.frames[self._stack[-1]] if self._stack else None
            between = frame is not None and not frame.opaque
            source = _source_line() if between else None
            values = self._record_op(info.name, inputs, outputs, source, bool(written), info.view)
            self.trace.ops[-1].call = call
            for value, tensor in zip(values, outputs):
                key = _storage_key(tensor)
                if any(tensor is other for other in written):
                    if self.tape:
                        self._geometries[value.id] = _geometry(tensor)
                    self._last_write[key] = (self._born[value.id], value.id)
                elif not info.view:
                    self._last_write.pop(key, None)
            if self.on_value is not None and (between or self.every_op):
                for value, tensor in zip(values, outputs):
                    self._notify(value, tensor)
            return result
        finally:
            self._busy = False

    def _note_body(self, name, result):
        was_busy, self._busy = self._busy, True
        try:
            values = [self._value_of(tensor).id for _, tensor in flatten_tensors(result)]
        finally:
            self._busy = was_busy
        self.trace.bodies.append((name, values))

    def _taped(self, item):
        """An argument of an operation with a ``Ref`` in each tensor's place."""
        if isinstance(item, torch.Tensor):
            return Ref(self._value_of(item).id)
        if isinstance(item, (list, tuple)):
            return [self._taped(child) for child in item]
        if isinstance(item, dict):
            return {key: self._taped(child) for key, child in item.items()}
        return item

    def _notify(self, value, tensor):
        if self.on_value is not None and value.dynamic and value.shape is not None and value.id not in self._seen:
            self._seen.add(value.id)
            self._pending.append((value, tensor))

    def _deliver(self):
        """Hands out what is complete, at the next event: by then the caller has let go of the operands before it."""
        pending, self._pending = self._pending, []
        for value, tensor in pending:
            self.on_value(value, tensor)

    # -- modules ------------------------------------------------------------------------------------------------------

    def _before_module(self, module, args):
        path = self._paths.get(id(module))
        if path is None or self._mode is None:
            return
        was_busy, self._busy = self._busy, True
        try:
            self._deliver()
        finally:
            self._busy = was_busy
        call = self._calls.get(path, 0)
        self._calls[path] = call + 1
        parent = self._stack[-1] if self._stack else -1
        trace = self.trace
        frame = Frame(
            len(trace.frames),
            path,
            call,
            type(module).__name__,
            parent,
            self._leaf[id(module)],
            len(trace.ops),
            _source_line() if parent >= 0 else _definition(module),
        )
        # Inside a leaf, operations belong to the leaf and are no stages of their own.
        frame.opaque = frame.leaf or (parent >= 0 and trace.frames[parent].opaque)
        trace.frames.append(frame)
        self._stack.append(frame.index)

    def _end_frame(self):
        frame = self.trace.frames[self._stack.pop()]
        frame.stop, frame.end = len(self.trace.ops), self._ended
        self._ended += 1

    def _after_module(self, module, args, output):
        path = self._paths.get(id(module))
        if path is None or not self._stack:
            return
        # A child whose exception was caught by the model never came here: drop what it left on the stack.
        while self._stack and self.trace.frames[self._stack[-1]].path != path:
            self._end_frame()
        if not self._stack:
            return
        was_busy, self._busy = self._busy, True
        try:
            frame = self.trace.frames[self._stack[-1]]
            for key, tensor in flatten_tensors(output):
                value = self._value_of(tensor)
                frame.outputs.append((key, value.id))
                self._notify(value, tensor)
            if self._by_hooks:
                # Nothing announces the next write into it.
                self._deliver()
            self._end_frame()
        finally:
            self._busy = was_busy


@contextlib.contextmanager
def _plain_bodies():
    """Runs the bodies that a model gives to ``torch.cond`` and ``torch.while_loop`` as the Python functions they are.

    torch compiles them before it runs them, and the modules called inside are gone then.
    """
    try:
        from torch._higher_order_ops import utils
    except ImportError:
        utils = None
    own = getattr(utils, "_hop_compile_and_call", None)
    if own is None:
        # Without it the compiled bodies run, and their operations belong to the module around them.
        yield
        return

    def call(function, args, kwargs=None):
        return function(*args, **(kwargs or {}))

    utils._hop_compile_and_call = call
    try:
        yield
    finally:
        utils._hop_compile_and_call = own


def _cond(pred, true_fn, false_fn, operands=()):
    return true_fn(*operands) if pred else false_fn(*operands)


def _scan(combine_fn, init, xs, additional_inputs):
    from torch._higher_order_ops.scan import generic_scan

    return generic_scan(combine_fn, init, xs, additional_inputs=additional_inputs)


def _kernel(operator):
    """What torch itself runs, outside of any mode."""
    return operator.py_kernels[torch._C.DispatchKey.CompositeExplicitAutograd]


def _operator_name(operator):
    return operator.name() if callable(getattr(operator, "name", None)) else str(operator)


def _body_runner(operator):
    """A function that runs an operator's bodies as plain PyTorch; None for one whose bodies are not to be looked into."""
    name = _operator_name(operator)
    if name == "cond":
        return _cond
    if name == "scan":
        return _scan
    if name in ("while_loop", "map_impl", "associative_scan"):
        return _kernel(operator)
    return None


def spare_compiler(handler):
    """A mode's ``__torch_dispatch__`` that does not import torch's compiler.

    Torch keeps its compiler away from such a handler, and imports it for that at the first call: a second, and 36 MB.
    Where nobody has imported it, there is nothing to keep away. A torch that does this in another way is left to it.
    """

    def handle(*args, **kwargs):
        if not hasattr(sys.modules.get("torch._dynamo"), "disable"):
            return handler(*args, **kwargs)
        del handler.__dynamo_disable
        return torch._disable_dynamo(handler)(*args, **kwargs)

    # Where torch looks for the handler without its compiler, before it makes one.
    handler.__dynamo_disable = handle
    return handler


class _Mode(TorchDispatchMode or object):
    supports_higher_order_operators = True

    def __init__(self, recorder):
        super().__init__()
        self._recorder = recorder
        self.body = None

    @spare_compiler
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator) and not self._recorder._busy:
            run = _body_runner(func)
            if run is not None:
                return self._run_body(_operator_name(func), run, args, kwargs)
        elif self.body is not None and not self._recorder._busy:
            # In a body ``linear`` comes as it is; elsewhere torch has taken it apart before it comes here.
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return self._recorder._operate(func, args, kwargs)

    def _run_body(self, name, run, args, kwargs):
        """With the mode on again: the operations inside are recorded as any others."""
        outer = self.body
        self.body = outer or name
        try:
            with self:
                result = run(*args, **kwargs)
        finally:
            self.body = outer
        if outer is None:
            self._recorder._note_body(name, result)
        return result


# -- stages -----------------------------------------------------------------------------------------------------------

# Operations that only say how memory is read, or copy it: they make no numbers, so they are no stages.
LAYOUT_OPS = frozenset(
    "view _unsafe_view reshape _reshape_alias t transpose permute expand slice select unsqueeze squeeze detach alias clone "
    "contiguous split split_with_sizes chunk unbind as_strided diagonal narrow copy lift_fresh alias_update "
    "lift_fresh_copy _conj _neg_view view_as_real view_as_complex unsafe_split unsafe_chunk unfold split_with_sizes_copy "
    "swapaxes movedim flatten".split()
)
# Operations whose operand gives only a shape.
FACTORY_OPS = frozenset(
    "zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones new_full new_empty "
    "new_empty_strided empty_strided".split()
)


class StageEntry:
    """One tensor that the run computed, at one level; ``ref`` and ``alias`` are (path, call, output key).

    ``inputs`` are values made outside the stage, ``order`` is when its value was complete, counted in operations.
    """

    __slots__ = ("ref", "level", "type", "source", "shape", "dtype", "value", "inputs", "order", "alias")

    def __init__(self, ref, level, type, source, shape, dtype, value, inputs, order, alias):
        self.ref = ref
        self.level = level
        self.type = type
        self.source = source
        self.shape = shape
        self.dtype = dtype
        self.value = value
        self.inputs = inputs
        self.order = order
        self.alias = alias


def stages_of(trace, every_op=False):
    """Stages of all levels in the order in which their values were complete, from what a ``Recorder`` saw."""
    stages = _Stages(trace)
    by_frame_stop = {}
    for frame in trace.frames:
        stop = frame.stop if frame.stop is not None else len(trace.ops)
        by_frame_stop.setdefault(stop, []).append(frame)
    for place in range(len(trace.ops) + 1):
        if place:
            stages.add_op(trace.ops[place - 1], every_op)
        # In the order in which they ended: children before parents, and before the next sibling.
        for frame in sorted(by_frame_stop.get(place, []), key=lambda f: (f.end is None, f.end)):
            stages.add_frame(frame)
    return sorted(stages.found, key=lambda stage: stage.order)


def parents_of(trace):
    """For each value those that its operation read and that depend on an input of the run."""
    return {
        output: tuple(i for i in dict.fromkeys(op.inputs) if trace.values[i].dynamic)
        for op in trace.ops
        for output in op.outputs
        if op.name not in FACTORY_OPS
    }


class _Stages:
    def __init__(self, trace):
        self.trace = trace
        self.found = []
        self.by_value = {}
        self.counts = {}
        self.used = {i for op in trace.ops for i in op.inputs}
        self.used |= {value for frame in trace.frames for _, value in frame.outputs}
        self.used |= {value for _, value in trace.outputs}

    def add_op(self, op, every_op):
        if op.frame < 0 or op.name in LAYOUT_OPS or op.name in FACTORY_OPS:
            return
        frame = self.trace.frames[op.frame]
        if frame.opaque and not every_op:
            return
        inputs = self._dynamic(op.inputs)
        if not inputs or self._is_plain_cast(op):
            return
        number = self.counts.get((frame.index, op.name), 0)
        self.counts[frame.index, op.name] = number + 1
        path = "{}/{}#{}".format(frame.path, op.name, number)
        for key, value in enumerate(op.outputs):
            if value in self.used:
                level = "op" if frame.opaque else "leaf"
                self._add((path, frame.call, key), level, op.name, op.source, value, inputs, op.index + 1)

    def _is_plain_cast(self, op):
        """``_to_copy`` that changes device or layout, but no number."""
        values = self.trace.values
        return op.name == "_to_copy" and values[op.inputs[0]].dtype == values[op.outputs[0]].dtype

    def add_frame(self, frame):
        stop = frame.stop if frame.stop is not None else len(self.trace.ops)
        if frame.leaf and self._inside_opaque(frame):
            return
        inside = self.trace.ops[frame.start : stop]
        made = {value for op in inside for value in op.outputs}
        read = [i for op in inside if op.name not in FACTORY_OPS for i in op.inputs if i not in made]
        read += [value for _, value in frame.outputs if value not in made]
        inputs = self._dynamic(read)
        level = "leaf" if frame.leaf else "container"
        for key, value in frame.outputs:
            if self.trace.values[value].dynamic:
                self._add((frame.path, frame.call, key), level, frame.type, frame.source, value, inputs, stop)

    def _inside_opaque(self, frame):
        return frame.parent >= 0 and self.trace.frames[frame.parent].opaque

    def _dynamic(self, values):
        return tuple(i for i in dict.fromkeys(values) if self.trace.values[i].dynamic)

    def _add(self, ref, level, type_name, source, value, inputs, order):
        known = self.trace.values[value]
        if known.shape is None:
            return
        first = self.by_value.get(value)
        alias = first
        if first is None and value in {v for _, v in self.trace.inputs}:
            alias = ("(input)", 0, next(k for k, v in self.trace.inputs if v == value))
        shape, dtype = known.shape, known.dtype
        self.found.append(StageEntry(ref, level, type_name, source, shape, dtype, value, inputs, order, alias))
        self.by_value.setdefault(value, ref)


# -- numbers ----------------------------------------------------------------------------------------------------------

BUNDLE_VERSION = 1
MANIFEST = "manifest.json"
PROJECTIONS = "projections.safetensors"
PROJECTED = 64
"""How many numbers stand for a tensor in a summary: relative errors are estimated to about 9 % from them."""

_CHUNK = 1 << 18
_SHARD = 64 << 20
_PARTIAL = ".partial-"
_PROJECTION_SEED = "bisect-tool projection 1"

_SAFETENSORS = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
_PAIRS = {"complex64": "float32", "complex128": "float64"}


class RecordError(Exception):
    """Something the user can mend; ``hint`` is the remedy."""

    def __init__(self, message, hint=None):
        super().__init__(message)
        self.message = message
        self.hint = hint


class Encoded:
    """A tensor as a bundle holds it.

    Attributes:
        dtype, shape: of the tensor itself; what is no number has the dtype ``json``.
        raw: its bytes in order, as a one-dimensional array of bytes.
        stored: the safetensors dtype of ``raw``. Complex numbers are pairs along one more axis, fp8 formats that safetensors
            lacks are U8, and so is JSON.
        stored_shape: shape under which it is stored.
        numbers: its values as real numbers in one dimension; None where it has none.
    """

    __slots__ = ("dtype", "shape", "raw", "stored", "stored_shape", "numbers")

    def __init__(self, dtype, shape, raw, stored, stored_shape, numbers):
        self.dtype = dtype
        self.shape = tuple(int(size) for size in shape)
        self.raw = raw
        self.stored = stored
        self.stored_shape = tuple(int(size) for size in stored_shape)
        self.numbers = numbers

    def digest(self):
        """SHA-256 over dtype, shape and bytes."""
        found = hashlib.sha256("{}|{}|".format(self.dtype, list(self.shape)).encode())
        found.update(memoryview(self.raw))
        return found.hexdigest()


def encode(value):
    """A tensor or an array, of any layout in memory, as its bytes in C order, little-endian."""
    return _encode_tensor(value) if isinstance(value, torch.Tensor) else _encode_array(np.asarray(value))


def _bytes_of(array):
    return array.reshape(-1).view(np.uint8) if array.size else np.zeros(0, np.uint8)


def _encode_tensor(tensor):
    tensor = tensor.detach()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    for resolve in ("resolve_conj", "resolve_neg"):
        if hasattr(tensor, resolve):
            tensor = getattr(tensor, resolve)()
    tensor = tensor.cpu().contiguous()
    name = dtype_name(tensor.dtype)
    if name in ("bfloat16",) or name.startswith("float8"):
        size = tensor.element_size()
        bits = tensor.view(torch.int16 if size == 2 else torch.uint8).numpy()
        stored = _SAFETENSORS.get(name, "U8")
        return Encoded(name, tensor.shape, _bytes_of(bits), stored, tensor.shape, tensor.float().numpy().reshape(-1))
    if name == "complex32":
        tensor = tensor.to(torch.complex64)
    return _encode_array(tensor.numpy())


def _encode_array(array):
    # ascontiguousarray would make a vector of a number.
    shape = array.shape
    name = array.dtype.name
    if array.dtype.kind in "fiubc" and array.dtype.names is None:
        if array.dtype.kind == "f" and array.dtype.itemsize > 8:
            array, name = array.astype(np.float64), "float64"
        if array.dtype.kind == "c" and array.dtype.itemsize > 16:
            array, name = array.astype(np.complex128), "complex128"
        array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
        if name in _PAIRS:
            pairs = array.reshape(-1).view(_PAIRS[name])
            return Encoded(name, shape, _bytes_of(array), _SAFETENSORS[_PAIRS[name]], tuple(shape) + (2,), pairs)
        return Encoded(name, shape, _bytes_of(array), _SAFETENSORS[name], shape, array.reshape(-1))
    if name == "bfloat16" or name.startswith("float8"):  # of ml_dtypes
        array = np.ascontiguousarray(array)
        numbers = array.astype(np.float32).reshape(-1)
        return Encoded(name, shape, _bytes_of(array), _SAFETENSORS.get(name, "U8"), shape, numbers)
    text = json.dumps([str(item) for item in array.reshape(-1).tolist()], ensure_ascii=True)
    raw = np.frombuffer(text.encode(), np.uint8)
    return Encoded("json", shape, raw, "U8", raw.shape, None)


def _scrambled(start, count, seed):
    """Random 64-bit numbers for the places from ``start`` on: SplitMix64's output function on a counter.

    Integers alone, with no generator of any library, so that every version of numpy gives the same.
    """
    with np.errstate(over="ignore"):
        mixed = np.arange(start + 1, start + count + 1, dtype=np.uint64)
        mixed *= np.uint64(0x9E3779B97F4A7C15)
        mixed += np.uint64(seed)
        mixed ^= mixed >> np.uint64(30)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(27)
        mixed *= np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return mixed


def summarize(numbers, shape):
    """Statistics of real numbers, and their fixed random projection.

    Each element goes with a random sign into one of ``PROJECTED`` sums. The signs and places depend on the shape alone, so
    that the projection of a difference is the difference of projections, and its square is on average that of the norm.
    Elements that are not finite count as zero there.

    Returns:
        The statistics as plain values, and the projection as float64 of ``(PROJECTED,)``.
    """
    seed = int.from_bytes(hashlib.sha256("{}|{}".format(_PROJECTION_SEED, list(shape)).encode()).digest()[:8], "little")
    projection = np.zeros(PROJECTED, np.float64)
    total = square = 0.0
    lowest, highest = np.inf, -np.inf
    nan = positive = negative = 0
    for start in range(0, numbers.size, _CHUNK):
        chunk = numbers[start : start + _CHUNK].astype(np.float64)
        finite = np.isfinite(chunk)
        if not finite.all():
            nan += int(np.isnan(chunk).sum())
            positive += int(np.isposinf(chunk).sum())
            negative += int(np.isneginf(chunk).sum())
            values = chunk[finite]
            chunk[~finite] = 0.0
        else:
            values = chunk
        if values.size:
            lowest, highest = min(lowest, float(values.min())), max(highest, float(values.max()))
        with np.errstate(over="ignore", invalid="ignore"):
            total += float(chunk.sum())
            square += float((chunk * chunk).sum())
            mixed = _scrambled(start, chunk.size, seed)
            places = (mixed & np.uint64(PROJECTED - 1)).astype(np.intp)
            np.negative(chunk, out=chunk, where=(mixed >> np.uint64(63)).astype(bool))
            projection += np.bincount(places, weights=chunk, minlength=PROJECTED)
    count = numbers.size - nan - positive - negative
    statistics = {
        "count": int(numbers.size),
        "nan": nan,
        "positive_infinite": positive,
        "negative_infinite": negative,
        "minimum": lowest if count else None,
        "maximum": highest if count else None,
        "mean": total / count if count and np.isfinite(total) else None,
        "norm": float(np.sqrt(square)) if np.isfinite(square) else None,
    }
    return statistics, projection


# -- the bundle -------------------------------------------------------------------------------------------------------


def safetensors_bytes(tensors):
    """A safetensors file, in pieces: ``tensors`` are (name, dtype, shape, bytes as an array)."""
    header, at = {}, 0
    for name, dtype, shape, raw in tensors:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + raw.nbytes]}
        at += raw.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little")
    yield text
    for _, _, _, raw in tensors:
        yield memoryview(raw)


def manifest_digest(manifest):
    """SHA-256 of a manifest without its own digest, whatever the layout of its JSON."""
    plain = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _plain(value):
    """JSON without NaN and infinities, and nothing but plain values."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in (sorted(value, key=str) if isinstance(value, (set, frozenset)) else value)]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return _plain(value.item())
    return str(value)


class BundleWriter:
    """Writes a bundle under a temporary name; ``finish`` gives it its own. Leaving the context removes what is unfinished.

    Args:
        path: of the bundle.
        folder: a folder instead of a single file.
        force: replace a bundle that is there; nothing else is ever replaced.
        summary: keep no tensor, only what is known about each.
        choose: tensors may be left out later: ``keep`` says which stay.

    Raises:
        RecordError: something is there already, or it cannot be written.
    """

    def __init__(self, path, folder=False, force=False, summary=False, choose=False):
        self.path = os.path.abspath(str(path))
        self.folder = folder
        self.force = force
        self.summary = summary
        self.choose = choose
        self.tensors = {}
        self.members = []
        self._by_digest = {}
        self._projections = []
        self._pending = []
        self._pending_bytes = 0
        self._waiting = {}
        self._shards = 0
        check_target(self.path, folder, force)
        parent = os.path.dirname(self.path)
        name = _PARTIAL + "%08x-" % random.SystemRandom().getrandbits(32) + os.path.basename(self.path)
        self._place = os.path.join(parent, name)
        try:
            os.mkdir(self._place)
        except OSError as error:
            raise RecordError(
                "cannot write to {}: {}".format(parent, error.strerror), "choose another place"
            ) from error

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        shutil.rmtree(self._place, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.remove(self._place + ".zip")
        return False

    def add(self, value, keep=True):
        """Puts a tensor in, unless one with the same content is there. Returns its name in the bundle.

        ``keep=False``: what is known about it, not the tensor itself.
        """
        encoded = value if isinstance(value, Encoded) else encode(value)
        digest = encoded.digest()
        name = self._by_digest.get(digest)
        if name is None:
            name = "t%d" % len(self.tensors)
            self._by_digest[digest] = name
            entry = {"dtype": encoded.dtype, "shape": list(encoded.shape), "sha256": digest, "member": None}
            entry.update({"statistics": None, "projection": None})
            if encoded.numbers is not None:
                entry["statistics"], projection = summarize(encoded.numbers, encoded.shape)
                entry["projection"] = len(self._projections)
                self._projections.append(projection)
            self.tensors[name] = entry
        if keep and not self.summary and self.tensors[name]["member"] is None and name not in self._waiting:
            if self.choose:
                with open(os.path.join(self._place, name), "wb") as file:
                    encoded.raw.tofile(file)
                self._waiting[name] = (encoded.stored, encoded.stored_shape)
            else:
                self._store(name, encoded.stored, encoded.stored_shape, encoded.raw)
        return name

    def keep(self, names):
        """Of the tensors that were added, those that stay, where ``choose`` left that open."""
        for name in dict.fromkeys(names):
            if name in self._waiting:
                stored, shape = self._waiting.pop(name)
                place = os.path.join(self._place, name)
                self._store(name, stored, shape, np.fromfile(place, np.uint8))
                os.remove(place)

    def _store(self, name, stored, shape, raw):
        # A copy: the tensor may be overwritten before the shard is full.
        self._pending.append((name, stored, shape, np.array(raw)))
        self._pending_bytes += raw.nbytes
        self.tensors[name]["member"] = "tensors-%05d.safetensors" % self._shards
        if self._pending_bytes >= _SHARD:
            self._flush()

    def _flush(self):
        if self._pending:
            self._write("tensors-%05d.safetensors" % self._shards, safetensors_bytes(self._pending))
            self._pending, self._pending_bytes = [], 0
            self._shards += 1

    def _write(self, name, pieces):
        found, size = hashlib.sha256(), 0
        with open(os.path.join(self._place, name), "wb") as file:
            for piece in pieces:
                file.write(piece)
                found.update(piece)
                size += len(piece) if isinstance(piece, bytes) else piece.nbytes
        self.members.append({"name": name, "bytes": size, "sha256": found.hexdigest()})

    def finish(self, manifest):
        """Writes the manifest, and puts the bundle in its place. Returns the path."""
        try:
            for name in self._waiting:
                os.remove(os.path.join(self._place, name))
            self._flush()
            rows = np.array(self._projections, np.float64).reshape(len(self._projections), PROJECTED)
            self._write(PROJECTIONS, safetensors_bytes([("projections", "F64", rows.shape, _bytes_of(rows))]))
            whole = {"bundle_version": BUNDLE_VERSION, **_plain(manifest)}
            whole["tensors"] = _plain(self.tensors)
            whole["members"] = self.members
            whole["digest"] = manifest_digest(whole)
            text = json.dumps(whole, indent=1, allow_nan=False).encode()
            with open(os.path.join(self._place, MANIFEST), "wb") as file:
                file.write(text)
            self._move()
        except OSError as error:
            raise RecordError(
                "cannot write {}: {}".format(self.path, error.strerror), "choose another place"
            ) from error
        return self.path

    def _move(self):
        check_target(self.path, self.folder, self.force)
        if self.folder:
            old = self._place + ".old"
            if os.path.lexists(self.path):
                os.rename(self.path, old)
            try:
                os.rename(self._place, self.path)
            except BaseException:
                if os.path.lexists(old):
                    os.rename(old, self.path)
                raise
            shutil.rmtree(old, ignore_errors=True)
            return
        # The manifest first: it says what must be there.
        names = [MANIFEST] + [member["name"] for member in self.members]
        with zipfile.ZipFile(self._place + ".zip", "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name in names:
                # Times would make the same recording another file.
                info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
                info.external_attr = 0o644 << 16
                source = os.path.join(self._place, name)
                info.file_size = os.path.getsize(source)
                wide = info.file_size >= 1 << 31
                with open(source, "rb") as file, archive.open(info, "w", force_zip64=wide) as member:
                    shutil.copyfileobj(file, member, 1 << 20)
        os.replace(self._place + ".zip", self.path)


def check_target(path, folder=False, force=False):
    """Refuses a place that a bundle cannot go to; call it before a long run.

    Raises:
        RecordError: something is there that may not be replaced, or the folder around it is missing.
    """
    parent = os.path.dirname(os.path.abspath(str(path)))
    if not os.path.isdir(parent):
        raise RecordError("{}: there is no folder {}".format(path, parent), "make it first")
    if not os.path.lexists(path):
        return
    if not force:
        raise RecordError(
            "{}: it exists and is not overwritten".format(path), "--force replaces a bundle; or choose another name"
        )
    other = foreign_reason(str(path))
    if other is not None:
        raise RecordError(
            "{}: {}; --force replaces nothing but a bundle".format(path, other),
            "choose another name, or remove it yourself",
        )
    if folder != os.path.isdir(path):
        kinds = ("a folder", "a file") if os.path.isdir(path) else ("a file", "a folder")
        raise RecordError("{}: there is {}, and {} is to be written".format(path, *kinds), "choose another name")


def foreign_reason(path):
    """Why what is there is no bundle, whole and with nothing else in it; None where it is one.

    Its manifest has a digest of its own, so that nothing else passes for one by its name. The tensors' own digests are not
    checked: that would read all of it.
    """
    if os.path.islink(path):
        return "it is a link"
    try:
        sizes, raw = _folder_members(path) if os.path.isdir(path) else _file_members(path)
    except _Foreign as error:
        return str(error)
    except OSError as error:
        return "it cannot be read ({})".format(error.strerror)
    try:
        manifest = json.loads(raw.decode())
        listed = {entry["name"]: entry["bytes"] for entry in manifest["members"]}
        version, digest = manifest["bundle_version"], manifest["digest"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return "its {} is not that of a bundle".format(MANIFEST)
    if not isinstance(version, int) or digest != manifest_digest(manifest):
        return "its {} is not as this tool wrote it".format(MANIFEST)
    if listed != sizes:
        names = sorted(name for name in set(listed) | set(sizes) if listed.get(name) != sizes.get(name))
        return "it is no whole bundle: {} is not as its {} says".format(names[0], MANIFEST)
    return None


class _Foreign(Exception):
    """Something is no bundle; its text says what it is."""


_MEMBER = re.compile(r"manifest\.json|projections\.safetensors|tensors-[0-9]{5,}\.safetensors")
_MOST_MANIFEST = 1 << 28


def _folder_members(path):
    """Sizes of the members beside the manifest, and the manifest's bytes."""
    sizes = {}
    with os.scandir(path) as entries:
        for entry in entries:
            if not _MEMBER.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
                raise _Foreign("it is a folder that is no bundle: it holds {!r}".format(entry.name))
            sizes[entry.name] = entry.stat(follow_symlinks=False).st_size
    if not 0 < sizes.pop(MANIFEST, 0) <= _MOST_MANIFEST:
        raise _Foreign("it is a folder that is no bundle: it has no {}".format(MANIFEST))
    with open(os.path.join(path, MANIFEST), "rb") as file:
        return sizes, file.read()


def _file_members(path):
    """The same of a single file."""
    if not os.path.isfile(path):
        raise _Foreign("it is no file")
    if not os.path.getsize(path):
        raise _Foreign("it is an empty file")
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":
            raise _Foreign("it is a file that is no bundle")
        file.seek(0)
        try:
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
                for entry in entries:
                    if not _MEMBER.fullmatch(entry.filename) or entry.compress_type != zipfile.ZIP_STORED:
                        raise _Foreign("it is a zip file that is no bundle: it holds {!r}".format(entry.filename))
                sizes = {entry.filename: entry.file_size for entry in entries}
                if len(sizes) != len(entries) or not 0 < sizes.pop(MANIFEST, 0) <= _MOST_MANIFEST:
                    raise _Foreign("it is a zip file that is no bundle: it has no {} of one".format(MANIFEST))
                return sizes, archive.read(MANIFEST)
        except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, RuntimeError):
            raise _Foreign("it is no whole zip file, and no bundle") from None


# -- provenance -------------------------------------------------------------------------------------------------------

VARIABLES = (
    "OMP_* KMP_* GOMP_* MKL_* OPENBLAS_* GOTO_* BLIS_* VECLIB_* NUMEXPR_* TBB_* NPY_* NUMBA_* DNNL_* ONEDNN_* ATEN_* TORCH_* "
    "TORCHINDUCTOR_* TORCHDYNAMO_* PYTORCH_* ORT_* NVIDIA_TF32_OVERRIDE NVIDIA_VISIBLE_DEVICES CUBLAS_* CUBLASLT_* CUDNN_* "
    "CUDA_* NCCL_* HIP_* ROCR_* HSA_* MIOPEN_* XLA_* JAX_* OPENCV_* TF_DETERMINISTIC_OPS TF_CUDNN_* TF_ENABLE_* TF_DISABLE_* "
    "TF_XLA_* TF_NUM_* TF_FORCE_* PYTHONHASHSEED PYTHONOPTIMIZE LD_PRELOAD MALLOC_* GLIBC_TUNABLES THP_MEM_ALLOC_ENABLE "
    "LANG LC_ALL LC_NUMERIC LC_COLLATE TZ".split()
)
"""Names of environment variables that may change numbers, or their beginnings: those of the package's ``variables.py``."""
_SECRET = re.compile(
    r"TOKEN|SECRET|PASS|PWD|KEY|CREDENTIAL|AUTH|COOKIE|PRIVATE|CERT|SIGNATURE|LICEN[CS]E|BEARER|ACCOUNT|USER|EMAIL|PROXY|WEBHOOK"
    r"|DSN|SALT|_(DIRS?|DIRECTORY|FOLDER|CACHE|CACHE_PATH|FILE|LOGS?|ROOT|HOST|ADDR|ADDRESS|HUB|HOME)$"
)
"""Secrets, and places, which change no number and name their user often."""
_PLAIN_VALUE = re.compile(r"[\w.,:;=/+ -]{0,60}")


def _is_told(name):
    known = any(name.startswith(each[:-1]) if each.endswith("*") else name == each for each in VARIABLES)
    return known and not _SECRET.search(name.upper())


def environment():
    """What the numbers are made with, as plain values; nothing that names a user or a place."""
    versions = {}
    try:
        from importlib.metadata import distributions

        for each in distributions():
            name = each.metadata["Name"]
            if name:
                # The first on the path is the one that is imported.
                versions.setdefault(re.sub(r"[-_.]+", "-", name).lower(), each.version)
    except Exception:  # damaged metadata of some package must not cost the recording
        versions["torch"], versions["numpy"] = torch.__version__, np.__version__
    # A long value may be anything: that there is one is told.
    variables = {
        name: value if _PLAIN_VALUE.fullmatch(value) else "(withheld)"
        for name, value in sorted(os.environ.items())
        if _is_told(name)
    }
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cpus": os.cpu_count() or 0,
        "versions": {name: versions[name] for name in ("torch", "numpy") if name in versions},
        "distributions": versions,
        "variables": variables,
        "torch": torch_build(),
    }


def _processor():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()


def torch_build():
    """PyTorch's own version and what it was built with and runs on."""
    found = {"torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": None, "gpu": None, "git": None}
    found["git"] = getattr(torch.version, "git_version", None)
    try:
        if torch.cuda.is_available():
            found["cudnn"] = torch.backends.cudnn.version()
            found["gpu"] = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        found["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    except Exception:  # what an old torch lacks is not told
        pass
    return found


def numeric_flags():
    """PyTorch's switches that can change a number, as far as this version has them."""
    found = {}

    def note(name, read):
        try:
            value = read()
        except Exception:  # another version's switch, or one that contradicts another
            return
        found[name] = value if isinstance(value, (bool, int, str)) else str(value)

    backends = torch.backends
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        note("threads", torch.get_num_threads)
        note("interop_threads", torch.get_num_interop_threads)
        note("deterministic_algorithms", torch.are_deterministic_algorithms_enabled)
        note("deterministic_warn_only", torch.is_deterministic_algorithms_warn_only_enabled)
        note("default_dtype", lambda: dtype_name(torch.get_default_dtype()))
        note("cudnn.enabled", lambda: backends.cudnn.enabled)
        note("cudnn.benchmark", lambda: backends.cudnn.benchmark)
        note("cudnn.deterministic", lambda: backends.cudnn.deterministic)
        note("cudnn.allow_tf32", lambda: backends.cudnn.allow_tf32)
        note("matmul.allow_tf32", lambda: backends.cuda.matmul.allow_tf32)
        note("matmul.allow_fp16_reduced_precision", lambda: backends.cuda.matmul.allow_fp16_reduced_precision_reduction)
        note("matmul.allow_bf16_reduced_precision", lambda: backends.cuda.matmul.allow_bf16_reduced_precision_reduction)
        note("float32_matmul_precision", torch.get_float32_matmul_precision)
        note("mkldnn.enabled", lambda: backends.mkldnn.enabled)
        note("mkldnn.deterministic", lambda: backends.mkldnn.deterministic)
        note("flash_attention", lambda: backends.cuda.flash_sdp_enabled())
        note("memory_efficient_attention", lambda: backends.cuda.mem_efficient_sdp_enabled())
        note("math_attention", lambda: backends.cuda.math_sdp_enabled())
        note("fast_path", lambda: backends.mha.get_fastpath_enabled())
        note("autocast", lambda: torch.is_autocast_enabled() or torch.is_autocast_cpu_enabled())
        note("flush_denormal", lambda: bool((torch.tensor([1e-310], dtype=torch.float64) * 1.0).item() == 0.0))
    return found


def random_state():
    """Digests of every generator's state."""
    found = {"python": hashlib.sha256(repr(random.getstate()).encode()).hexdigest()[:16]}
    kind, keys, place, has_gauss, gauss = np.random.get_state()
    text = "{}|{}|{}|{}".format(kind, place, has_gauss, gauss).encode()
    found["numpy"] = hashlib.sha256(text + keys.tobytes()).hexdigest()[:16]
    found["torch"] = hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest()[:16]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for number in range(torch.cuda.device_count()):
            state = torch.cuda.get_rng_state(number).numpy().tobytes()
            found["cuda:%d" % number] = hashlib.sha256(state).hexdigest()[:16]
    return found


def seed_all(seed):
    """Seeds Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % (1 << 32))
    torch.manual_seed(seed)


def file_facts(role, path):
    """Name, size and SHA-256 of a file, without its folder."""
    found, size = hashlib.sha256(), 0
    with open(str(path), "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            found.update(block)
            size += len(block)
    return {"role": role, "name": os.path.basename(str(path)), "bytes": size, "sha256": found.hexdigest()}


def _git(folder, *arguments):
    try:
        done = subprocess.run(
            ["git", "-C", folder, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None


def git_state(folder):
    """Commit, changed files and submodules of the repository around a folder; None without one, and its root."""
    root = _git(folder, "rev-parse", "--show-toplevel")
    if not root:
        return None, None
    root = os.path.realpath(root.rstrip("\n"))
    commit = _git(root, "rev-parse", "HEAD")
    dirty = []
    entries = (_git(root, "status", "--porcelain", "-z", "--untracked-files=normal") or "").split("\0")
    skip = False
    for entry in entries:
        if skip or not entry:
            skip = False
            continue
        state, name = entry[:2], entry[3:]
        skip = "R" in state or "C" in state  # the old name follows
        place = os.path.join(root, name)
        digest = file_facts("", place)["sha256"] if os.path.isfile(place) and len(dirty) < 200 else None
        dirty.append({"path": name, "state": state.strip(), "sha256": digest})
    submodules = {}
    for line in (_git(root, "submodule", "status", "--recursive") or "").splitlines():
        parts = line[1:].split(" ")
        if len(parts) >= 2:
            submodules[parts[1]] = line[0].strip() + parts[0]
    return {"commit": commit and commit.strip(), "dirty": dirty, "submodules": submodules}, root


def code_digest(path):
    """Digest of Python code without comments and layout; None for what is no Python."""
    found = hashlib.sha256()
    try:
        with tokenize.open(path) as file:
            for token in tokenize.generate_tokens(file.readline):
                if token.type not in (tokenize.COMMENT, tokenize.NL):
                    text = "" if token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT) else token.string
                    found.update("{}|{}\n".format(tokenize.tok_name[token.type], text).encode("utf-8", "replace"))
    except (OSError, SyntaxError, tokenize.TokenError, UnicodeDecodeError):
        return None
    return found.hexdigest()


def code_state(main, modules, before):
    """Source files that the run used, with digests, and the state of the repository around the main one.

    Args:
        main: the model's file, or None.
        modules: the model's submodules.
        before: names of Python modules that were there before the model's code ran: none of them is the model's.
    """
    used = {}
    if main is not None:
        used[os.path.realpath(main)] = "model"
    for module in modules:
        home = sys.modules.get(type(module).__module__)
        place = getattr(home, "__file__", None)
        if place and not os.path.abspath(place).startswith(_TORCH_DIR):
            used.setdefault(os.path.realpath(place), "model")
    folder = os.path.dirname(os.path.realpath(main)) if main is not None else os.getcwd()
    git, root = git_state(folder)
    homes = [home for home in (root, folder, os.getcwd()) if home]
    library = os.path.dirname(os.path.realpath(os.__file__)) + os.sep
    for name, home in list(sys.modules.items()):
        place = getattr(home, "__file__", None)
        if name in before or not place:
            continue
        place = os.path.realpath(place)
        inside = any(place.startswith(each.rstrip(os.sep) + os.sep) for each in homes)
        # The tool's own modules come in one by one while it works.
        own = name.partition(".")[0] == "bisect_tool"
        installed = own or place.startswith(library) or {"site-packages", "dist-packages"} & set(place.split(os.sep))
        if inside and not installed:
            used.setdefault(place, "imported")
    files = []
    for place, why in sorted(used.items()):
        if place == os.path.realpath(_THIS_FILE) or not os.path.isfile(place):
            continue
        facts = file_facts(why, place)
        name = _source_name(place, root, folder)
        files.append({"path": name, "used": why, "sha256": facts["sha256"], "code": code_digest(place)})
    return {"files": files, "git": git}


def _source_name(place, root, folder):
    """A name that is the same on another machine."""
    parts = place.split(os.sep)
    if "site-packages" in parts:
        return "/".join(parts[parts.index("site-packages") :])
    for home in (root, folder, os.getcwd()):
        if home and place.startswith(home.rstrip(os.sep) + os.sep):
            return place[len(home) + 1 :].replace(os.sep, "/")
    return parts[-1]


def imported_distributions():
    """Installed packages of which something was imported: those that can have touched a number."""
    loaded = {name.partition(".")[0] for name in list(sys.modules)}
    try:
        from importlib.metadata import packages_distributions

        homes = packages_distributions()
    except Exception:  # Python before 3.10: by name
        return sorted({name.lower().replace("_", "-") for name in loaded if not name.startswith("_")})
    found = set()
    for name in loaded:
        found.update(each.lower().replace("_", "-") for each in homes.get(name, ()))
    return sorted(found)


# -- recording --------------------------------------------------------------------------------------------------------

MOMENTS = ("start", "built", "sample", "end")
"""When random states are looked at: before the model is built, after that, after the sample was made, after the run."""


class Recording:
    """A bundle in the making. Use it as a context manager; nothing is left of it unless ``finish`` came to its end.

    Args:
        output: path of the bundle.
        summary: statistics, digests and projections instead of tensors.
        stages: globs; only these stages' tensors are kept, of the others what a summary has.
        every_op: also the operations inside leaf modules.
        folder, force: see ``BundleWriter``.
    """

    def __init__(self, output, summary=False, stages=(), every_op=False, folder=False, force=False):
        self.writer = BundleWriter(output, folder, force, summary, bool(stages) and not summary)
        self.summary = summary
        self.globs = tuple(stages)
        self.every_op = every_op
        self.taps = []
        self.inputs = []
        self.weights = []
        self.stages = []
        self.outputs = []
        self.mode = {}
        self.states = {}
        self.notes = []
        self.absent = []  # stages that the recorded graph holds no value for, with the reason
        self.tape = False  # keep what is needed to compute the run again: see ``recorder``
        self.recorder = None
        self.before = frozenset(sys.modules)
        self._main = None
        self._modules = ()

    def __enter__(self):
        SINKS.append(self.tap)
        return self

    def __exit__(self, kind, error, traceback):
        SINKS[:] = [sink for sink in SINKS if sink != self.tap]
        return self.writer.__exit__(kind, error, traceback)

    def moment(self, name):
        """Notes the random states; ``name`` is one of ``MOMENTS``."""
        self.states[name] = random_state()

    def tap(self, name, value):
        """One step of preprocessing. Arrays inside containers, and columns of tables, become steps of their own."""
        for part, content in _parts_of(value):
            label = "/".join([str(name)] + part)
            number = sum(1 for entry in self.taps if entry["name"] == label)
            tensor = self._always(content)
            self.taps.append({"name": label, "call": number, "tensor": tensor})

    def _always(self, value):
        name = self.writer.add(value)
        self.writer.keep([name])
        return name

    def run(self, module, args=(), kwargs=None, context=None):
        """Runs a model once without gradients, and records its weights, mode, stages and outputs. Returns its output.

        Raises:
            RecordError: ``forward`` raised; the operation and the module it happened in are named.
        """
        kwargs = kwargs or {}
        self._note_model(module)
        for key, tensor in flatten_tensors(args) + flatten_tensors(kwargs):
            self.inputs.append({"key": key, "tensor": self._always(tensor)})
        kept = {}

        def on_value(value, tensor):
            kept[value.id] = self.writer.add(tensor)

        recorder = Recorder(module, on_value, self.every_op, self.tape)
        self.recorder = recorder if self.tape else None
        try:
            with torch.no_grad(), context or contextlib.nullcontext(), recorder:
                output = recorder.run(*args, **kwargs)
                final = [(key, self._always(tensor)) for key, tensor in flatten_tensors(output)]
        except RecordError:
            raise
        except Exception as error:
            raise RecordError(*explain_failure(recorder, module, error)) from error
        self.moment("end")
        self.outputs = [{"key": key, "tensor": name} for key, name in final]
        if TorchDispatchMode is None:
            self.notes.append("this torch shows no operations: stages are outputs of modules, without their inputs")
        self._note_stages(recorder.trace, kept, dict(recorder.trace.outputs), dict(final))
        return output

    def _note_model(self, module):
        self._modules = list(module.modules())
        if self._main is None:
            home = sys.modules.get(type(module).__module__)
            place = getattr(home, "__file__", None)
            if place and not os.path.abspath(place).startswith(_TORCH_DIR):
                self._main = place
        named = [("parameter", each) for each in module.named_parameters()]
        named += [("buffer", each) for each in module.named_buffers()]
        for kind, (name, tensor) in named:
            self.weights.append({"name": name, "kind": kind, "tensor": self.writer.add(tensor, keep=False)})
        training = [path for path, child in module.named_modules() if child.training]
        devices = sorted({str(tensor.device) for _, (_, tensor) in named})
        self.mode = {
            "training": bool(module.training),
            "modules_in_training": training,
            "devices": devices,
            "flags": numeric_flags(),
        }

    def _note_stages(self, trace, kept, outputs, final):
        for key, value in outputs.items():
            kept.setdefault(value, final.get(key))
        entries = [entry for entry in stages_of(trace, self.every_op) if entry.value in kept]
        parents = parents_of(trace)
        given = {value: key for key, value in trace.inputs}
        known = set(given) | {entry.value for entry in entries if entry.level != "container"}
        for entry in entries:
            read = _nearest(entry.inputs, parents, known)
            self.stages.append(
                {
                    "stage": entry.ref[0],
                    "call": entry.ref[1],
                    "output": entry.ref[2],
                    "level": entry.level,
                    "type": entry.type,
                    "source": _short_source(entry.source),
                    "value": entry.value,
                    "tensor": kept[entry.value],
                    # Of inputs of the model nothing is read that both sides could differ in unseen: they have a link.
                    "reads": [value for value in read if value not in given],
                    "reads_inputs": [given[value] for value in read if value in given],
                    "alias_of": list(entry.alias) if entry.alias else None,
                    "onnx_value": None,
                }
            )
        self._choose()

    def put_stages(self, stages, outputs, inputs=()):
        """Stages that another runner computed: dictionaries as in the manifest, with ``array`` for their tensor."""
        for entry in inputs:
            self.inputs.append({"key": entry["key"], "tensor": self._always(entry["array"])})
        for entry in stages:
            plain = {key: item for key, item in entry.items() if key != "array"}
            self.stages.append({**plain, "tensor": self.writer.add(entry["array"])})
        for entry in outputs:
            self.outputs.append({"key": entry["key"], "tensor": self._always(entry["array"])})
        self._choose()

    def _choose(self):
        if not self.globs:
            return
        wanted = [entry for entry in self.stages if any(_glob_matches(entry["stage"], g) for g in self.globs)]
        if not wanted:
            known = ", ".join(dict.fromkeys(entry["stage"] for entry in self.stages[:8] if entry["stage"]))
            raise RecordError(
                "--stages {}: no stage has such a name".format(" ".join(self.globs)),
                "stages are: {}, ...".format(known),
            )
        self.writer.keep(entry["tensor"] for entry in wanted)

    def finish(self, configuration, files=(), main=None, surroundings=None, command=None, tool=None, extra=None):
        """Writes the bundle. Returns its path.

        Args:
            configuration: every choice that was made, with what ``auto`` became.
            files: (role, path) of each file that was read.
            main: the model's file.
            surroundings: snapshot of the environment; None: this file's own.
            command: as typed.
            tool: name and version of the program.
            extra: more keys of the manifest.
        """
        provenance = {
            "code": code_state(main or self._main, self._modules, self.before),
            "configuration": configuration,
            "files": [file_facts(role, path) for role, path in files],
            "mode": self.mode,
            "random": self.states,
            "torch": torch_build(),
            "imported": imported_distributions(),
        }
        manifest = {
            "kind": "trace",
            "content": "summary" if self.summary else "selected" if self.globs else "full",
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "tool": tool or {"name": "bisect_recorder.py", "version": None},
            "command": command,
            "provenance": provenance,
            "environment": environment() if surroundings is None else surroundings,
            "data": {"taps": self.taps, "inputs": self.inputs},
            "weights": self.weights,
            "stages": self.stages,
            "outputs": self.outputs,
            "absent": self.absent,
            "notes": self.notes,
        }
        manifest.update(extra or {})
        return self.writer.finish(manifest)


def _glob_matches(path, glob):
    """As in the options of the other commands: ``*`` stays within one part of a dotted path, ``**`` does not."""
    pattern = {"**": ".*", "*": r"[^./]*", "?": r"[^./]"}
    parts = re.split(r"(\*\*|\*|\?)", "" if glob == "(model)" else glob)
    return re.fullmatch("".join(pattern.get(part, re.escape(part)) for part in parts), path) is not None


def record(
    module, args=(), kwargs=None, output="run.trace", summary=False, stages=(), force=False, folder=False, files=()
):
    """Records one run of a model that is already there, as it is: ``compare_recordings`` compares two such files.

    Args:
        module: in the mode and on the device that it is to run in.
        args, kwargs: inputs of its ``forward``; a single tensor stands for itself.
        output: path of the bundle.
        summary, stages, folder, force: see :class:`Recording`.
        files: (role, path) of files that the model or its input were read from; ``role`` as ``checkpoint`` or ``input``.

    Returns:
        The path.

    Raises:
        RecordError: the place is taken, or ``forward`` raised.
    """
    args = (args,) if isinstance(args, torch.Tensor) else tuple(args)
    with Recording(output, summary, stages, False, folder, force) as recording:
        for moment in MOMENTS[:-1]:
            recording.moment(moment)
        recording.run(module, args, kwargs)
        return recording.finish(configuration_of(module, mode="train" if module.training else "eval"), files)


def _nearest(values, parents, known):
    """The nearest values in ``known`` that others come from."""
    found, seen, stack = {}, set(), list(reversed(values))
    while stack:
        value = stack.pop()
        if value in seen:
            continue
        seen.add(value)
        if value in known:
            found[value] = None
        else:
            stack.extend(reversed(parents.get(value, ())))
    return list(found)


def _short_source(source):
    """``file:line`` as seen from here, or the file's name alone: never another folder's path."""
    own = os.path.dirname(_THIS_FILE)
    if source is None or (os.path.basename(own) == "bisect_tool" and source.startswith(own + os.sep)):
        return None
    here = os.getcwd() + os.sep
    return source[len(here) :] if source.startswith(here) else os.path.basename(source)


def _parts_of(value, path=()):
    """Arrays inside a value, each with the names that lead to it."""
    path = list(path)
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic, bool, int, float, complex, str)):
        return [(path, value)]
    if isinstance(value, dict):
        return [part for key, item in value.items() for part in _parts_of(item, path + [str(key)])]
    if isinstance(value, (list, tuple)):
        if value and all(isinstance(item, (bool, int, float, complex, str)) for item in value):
            return [(path, np.asarray(value))]
        return [part for number, item in enumerate(value) for part in _parts_of(item, path + [str(number)])]
    if hasattr(value, "columns") and hasattr(value, "iloc"):  # a data frame
        names = [str(name) for name in value.columns]
        parts = [(path + ["(columns)"], np.asarray(names, dtype=object)), (path + ["(index)"], np.asarray(value.index))]
        return parts + [(path + [name], np.asarray(value.iloc[:, at])) for at, name in enumerate(names)]
    if hasattr(value, "mode") and hasattr(value, "tobytes") and hasattr(value, "size"):  # an image
        return [(path, np.asarray(value)), (path + ["(mode)"], np.asarray([str(value.mode)], dtype=object))]
    if hasattr(value, "__array__"):
        return [(path, np.asarray(value))]
    return [(path, np.asarray([repr(type(value))], dtype=object))]


def explain_failure(recorder, module, error):
    """What a run that raised is told as: message and hint."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
    text = "the model's forward raised {}: {}".format(type(error).__name__, reason)
    hint = "run the model on this input on its own: it fails without this tool too"
    if recorder.failure is not None:
        text += "\n  " + str(recorder.failure)
        floats = {dtype for dtype, _ in recorder.failure.tensors if "float" in dtype}
        if len(floats) > 1:
            hint = "convert the model or its input, so that both have one dtype (.float(), .half()); or use autocast"
    else:
        paths = {id(child): path for path, child in module.named_modules()}
        deepest, traceback = module, error.__traceback__
        while traceback is not None:
            owner = traceback.tb_frame.f_locals.get("self")
            deepest = owner if id(owner) in paths else deepest
            traceback = traceback.tb_next
        text += "\n  in {} ({})".format(paths.get(id(deepest)) or "the model", type(deepest).__name__)
        if "dtype" in reason or "type" in reason:
            kinds = sorted({dtype_name(t.dtype) for t in module.parameters() if t.is_floating_point()})
            text += "; the weights are {}".format(", ".join(kinds))
    return text, hint


# -- scripts ----------------------------------------------------------------------------------------------------------


class _EnoughSteps(BaseException):
    """Ends a script after the steps that are recorded; no Exception, so that the script does not catch it."""


class ScriptRecording:
    """Records a training script: file lists, batches, initial weights, and of each step forward, loss, gradients, update.

    Whatever the script does goes through torch's own doors, which are watched: ``DataLoader``, the outermost module call,
    ``backward`` and ``Optimizer.step``.

    Args:
        recording: where it goes to.
        steps: optimiser steps after which the script is ended.
    """

    def __init__(self, recording, steps):
        self.recording = recording
        self.steps = steps
        self.step = 0
        self._batches = 0
        self._depth = 0
        self._model = None
        self._values = 0
        self._weights_noted = False
        self._busy = False
        self._buffers = {}
        self._loss = None

    # Each stage has a name with the step in it, and comes in the order in which it was made.
    def _stage(self, kind, name, tensor):
        stage = "step{}.{}{}".format(self.step, kind, "." + name.replace("/", ".") if name else "")
        entry = {"stage": stage, "call": 0, "output": 0, "level": "leaf", "type": kind, "source": None}
        entry.update({"value": self._values, "reads": [], "reads_inputs": [], "alias_of": None, "onnx_value": None})
        self._values += 1
        call = sum(1 for each in self.recording.stages if each["stage"] == stage)
        self.recording.stages.append({**entry, "call": call, "tensor": self.recording.writer.add(tensor)})

    def run(self, path, arguments):
        """Runs the script as ``python path arguments`` would, up to the last recorded step.

        Raises:
            RecordError: it raised, or ended without a single step.
        """
        import runpy

        old_argv, old_path = sys.argv, list(sys.path)
        sys.argv = [path, *arguments]
        sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
        try:
            with self._watching():
                runpy.run_path(path, run_name="__main__")
        except _EnoughSteps:
            pass
        except SystemExit as leave:
            if leave.code not in (None, 0):
                raise RecordError(
                    "script {} ended with exit code {}".format(path, leave.code), "run it on its own"
                ) from leave
        except Exception as error:
            text = "script {} raised {}: {}".format(
                path, type(error).__name__, str(error).splitlines()[0] if str(error) else ""
            )
            raise RecordError(text, "run it on its own to see the whole traceback") from error
        finally:
            sys.argv, sys.path[:] = old_argv, old_path
        if not self.step:
            raise RecordError(
                "script {} ended without an optimiser step".format(path), "only torch.optim's optimisers are seen"
            )

    @contextlib.contextmanager
    def _watching(self):
        import glob
        import pathlib

        from torch.utils import data

        changed = []

        def replace(owner, name, make):
            own = getattr(owner, name)
            changed.append((owner, name, own))
            setattr(owner, name, make(own))

        replace(os, "listdir", lambda own: self._listing(own, "os.listdir"))
        replace(glob, "glob", lambda own: self._listing(own, "glob.glob"))
        replace(pathlib.Path, "iterdir", lambda own: self._listing(own, "Path.iterdir"))
        replace(pathlib.Path, "glob", lambda own: self._listing(own, "Path.glob"))
        replace(data.DataLoader, "__iter__", self._loader)
        replace(torch.Tensor, "backward", self._backward)
        for kind in _all_subclasses(torch.optim.Optimizer):
            if "step" in vars(kind):
                replace(kind, "step", self._optimizer)
        handles = [
            torch_module.register_module_forward_pre_hook(self._before),
            torch_module.register_module_forward_hook(self._after),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for owner, name, own in reversed(changed):
                setattr(owner, name, own)

    def _listing(self, own, name):
        def listing(*args, **kwargs):
            found = own(*args, **kwargs)
            if self._busy or not _called_by_user(2):
                return found
            items = list(found)
            names = [os.path.basename(str(each)) for each in items]
            # Not the recording itself, which may lie in the same folder while it is made.
            names = [each for each in names if not each.startswith(_PARTIAL)]
            self._tap("files {}".format(name), np.asarray(names, dtype=object))
            return items if isinstance(found, list) else iter(items)

        return listing

    def _tap(self, name, value):
        self._busy = True
        try:
            self.recording.tap(name, value)
        finally:
            self._busy = False

    def _loader(self, own):
        def iterate(loader):
            for batch in own(loader):
                number, self._batches = self._batches, self._batches + 1
                self._tap("batch {}".format(number), batch)
                first = next((tensor for _, tensor in flatten_tensors(batch) if tensor.ndim), None)
                if first is not None:
                    digests = [encode(sample).digest()[:16] for sample in first]
                    self._tap("samples of batch {}".format(number), np.asarray(digests, dtype=object))
                yield batch

        return iterate

    def _before(self, module, args):
        self._depth += 1
        if self._depth == 1 and not self._weights_noted and next(module.parameters(), None) is not None:
            self._weights_noted = True
            self.recording.moment("built")
            self.recording.moment("sample")
            self.recording._note_model(module)
            self._model = module
            self._buffers = self._buffer_states()

    def _after(self, module, args, output):
        self._depth = max(0, self._depth - 1)
        if self._depth:
            return
        # A criterion is a module too.
        if module is not self._model and isinstance(output, torch.Tensor) and output.ndim == 0:
            self._loss = output
            self._stage("loss", "", output)
            return
        for key, tensor in flatten_tensors(output):
            self._stage("forward", "" if key == 0 else str(key), tensor)

    def _backward(self, own):
        def backward(tensor, *args, **kwargs):
            if tensor is not self._loss:
                self._stage("loss", "", tensor)
            self._loss = None
            return own(tensor, *args, **kwargs)

        return backward

    def _optimizer(self, own):
        def step(optimizer, *args, **kwargs):
            if self._busy:
                return own(optimizer, *args, **kwargs)
            names = self._names(optimizer)
            for name, parameter in names:
                if parameter.grad is not None:
                    self._stage("gradient", name, parameter.grad)
            self._busy = True
            try:
                result = own(optimizer, *args, **kwargs)
            finally:
                self._busy = False
            for name, parameter in names:
                self._stage("optimizer", name, parameter)
            self._note_buffers()
            self.step += 1
            if self.step >= self.steps:
                raise _EnoughSteps
            return result

        # Learning rate schedulers look for it.
        step.__wrapped__ = own
        return step

    def _buffer_states(self):
        """What each buffer of the model holds. Batch normalisation writes to its own unnoticed by ``_version``."""
        named = [] if self._model is None else self._model.named_buffers()
        return {name: encode(buffer).digest() for name, buffer in named}

    def _note_buffers(self):
        """Buffers that the step has changed, as batch normalisation's statistics are."""
        states = self._buffer_states()
        for name, buffer in [] if self._model is None else self._model.named_buffers():
            if self._buffers.get(name) != states[name]:
                self._stage("buffer", name, buffer)
        self._buffers = states

    def _names(self, optimizer):
        known = {} if self._model is None else {id(p): name for name, p in self._model.named_parameters()}
        found = [p for group in optimizer.param_groups for p in group["params"]]
        return [(known.get(id(p), "parameter{}".format(number)), p) for number, p in enumerate(found)]


def _all_subclasses(kind):
    found = []
    for child in kind.__subclasses__():
        found += [child] + _all_subclasses(child)
    return found


def _called_by_user(depth):
    """Whether the caller of what was replaced is neither torch nor Python itself."""
    name = sys._getframe(depth).f_code.co_filename
    library = os.path.dirname(os.path.abspath(os.__file__)) + os.sep
    return not name.startswith((_TORCH_DIR, library, "<")) and "site-packages" not in name


def record_script(recording, path, arguments, steps):
    """Records a training script; returns the configuration. See :class:`ScriptRecording`."""
    _need(path, "--script")
    recording.moment("start")
    script = ScriptRecording(recording, steps)
    script.run(path, list(arguments))
    if script.step < steps:
        recording.notes.append("the script ended after {} of {} steps".format(script.step, steps))
    recording.moment("end")
    for moment in ("built", "sample"):
        recording.states.setdefault(moment, recording.states["start"])
    return {
        "backend": "torch",
        "script": os.path.basename(path),
        "arguments": " ".join(arguments),
        "steps": script.step,
    }


# -- as a program -----------------------------------------------------------------------------------------------------
# Loading as `bisect-tool record` does it, with less help where something does not fit.

_WRAPPERS = (
    "state_dict",
    "model",
    "model_state_dict",
    "net",
    "network",
    "module",
    "ema",
    "params",
    "weights",
    "generator",
    "state_dict_ema",
    "model_ema",
)
_PREFIXES = ("module.", "model.", "_orig_mod.")
_TORCH_OF = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


def read_safetensors(path):
    """A safetensors file as tensors."""
    with open(str(path), "rb") as file:
        raw = file.read()
    try:
        size = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + size].decode())
        found = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            data = bytearray(raw[8 + size + begin : 8 + size + end])
            dtype = getattr(torch, _TORCH_OF[entry["dtype"]])
            flat = torch.frombuffer(data, dtype=dtype) if data else torch.zeros(0, dtype=dtype)
            found[name] = flat.reshape(entry["shape"])
        return found
    except (KeyError, ValueError, AttributeError, RuntimeError) as error:
        raise RecordError("{} is no safetensors file that can be read here: {}".format(path, error)) from error


def _read_torch(path, allow_pickle, checkpoint=True):
    """``checkpoint``: --allow-pickle is for checkpoints alone; a sample has to be written anew."""
    remedy = "--allow-pickle if you trust the file" if checkpoint else "save it as plain tensors, or as .npz"
    try:
        return torch.load(str(path), map_location="cpu", weights_only=not allow_pickle)
    except TypeError:  # a torch that does not know the option
        if not allow_pickle:
            raise RecordError(
                "{}: this torch can only unpickle it, which runs code in it".format(path),
                remedy,
            ) from None
        return torch.load(str(path), map_location="cpu")
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RecordError("{} cannot be read: {}".format(path, reason), remedy) from error


def _need(path, what):
    if not os.path.isfile(str(path)):
        raise RecordError("{} {}: no such file".format(what, path), "check the path")


def load_weights(path, allow_pickle=False):
    """The state dict in a checkpoint."""
    _need(path, "checkpoint")
    content = read_safetensors(path) if str(path).endswith(".safetensors") else _read_torch(path, allow_pickle)
    if isinstance(content, torch.nn.Module):
        content = content.state_dict()
    for _ in range(2):
        inner = [content[key] for key in _WRAPPERS if isinstance(content, dict) and isinstance(content.get(key), dict)]
        if not inner:
            break
        content = inner[0]
    if not isinstance(content, dict) or not any(isinstance(item, torch.Tensor) for item in content.values()):
        raise RecordError("checkpoint {} holds no state dict".format(path), "save model.state_dict()")
    return {key: item for key, item in content.items() if isinstance(item, torch.Tensor)}


def apply_weights(module, state, path, allow_missing=False, allow_unexpected=False):
    """Copies a state dict into a module, after mending prefixes that wrappers leave in the keys."""
    wanted = set(module.state_dict())
    best = state
    for prefix in _PREFIXES:
        changed = {key[len(prefix) :] if key.startswith(prefix) else key: item for key, item in state.items()}
        for candidate in (changed, {prefix + key: item for key, item in state.items()}):
            if len(wanted & set(candidate)) > len(wanted & set(best)):
                best = candidate
    if wanted and not wanted & set(best):
        raise RecordError(
            "checkpoint {} does not fit the model: no key fits; it has {}, the model {}".format(
                path, ", ".join(list(state)[:3]), ", ".join(sorted(wanted)[:3])
            ),
            "it is that of another model; give this model's checkpoint",
        )
    try:
        result = module.load_state_dict(best, strict=False)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise RecordError("checkpoint {} does not fit the model: {}".format(path, lines[-1].strip())) from error
    missing = [key for key in result.missing_keys if not key.endswith("num_batches_tracked")]
    unexpected = [key for key in result.unexpected_keys if not key.endswith("num_batches_tracked")]
    for keys, word, allowed in ((missing, "missing", allow_missing), (unexpected, "unexpected", allow_unexpected)):
        if keys and not allowed:
            raise RecordError(
                "checkpoint {} does not fit the model: {} {} keys, {}".format(
                    path, len(keys), word, ", ".join(keys[:5])
                ),
                "--allow-{} accepts that".format(word),
            )


def build_model(model, entry=None, arguments=None):
    """The model in ``model.py``, ``package.module:NAME`` or a TorchScript archive, and its file."""
    head, _, tail = model.rpartition(":")
    if not os.path.exists(model) and head and tail and entry is None:
        if head.endswith(".py") and os.path.isfile(head):
            model, entry = head, tail
        else:
            sys.path.insert(0, os.getcwd())
            home = importlib.import_module(head)
            return _made(home, tail, arguments), getattr(home, "__file__", None)
    _need(model, "model")
    folder = os.path.dirname(os.path.abspath(model))
    sys.path.insert(0, folder)
    if not model.endswith(".py"):
        return torch.jit.load(model, map_location="cpu"), None
    if entry is not None and ":" in entry:
        home_name, _, entry = entry.partition(":")
        home = importlib.import_module(home_name)
        return _made(home, entry, arguments), getattr(home, "__file__", None)
    name = "_user_model_" + re.sub(r"\W", "_", os.path.basename(model)[:-3])
    spec = importlib.util.spec_from_file_location(name, os.path.abspath(model))
    home = importlib.util.module_from_spec(spec)
    sys.modules[name] = home
    try:
        spec.loader.exec_module(home)
    except Exception as error:
        raise RecordError("model {} raised on import: {}: {}".format(model, type(error).__name__, error)) from error
    return _made(home, entry or _entry_of(home, model), arguments), model


def _entry_of(home, model):
    if hasattr(home, "build_model"):
        return "build_model"
    own = [n for n, item in vars(home).items() if getattr(item, "__module__", None) == home.__name__]
    kinds = [n for n in own if isinstance(getattr(home, n), type) and issubclass(getattr(home, n), torch.nn.Module)]
    made = [n for n, item in vars(home).items() if isinstance(item, torch.nn.Module)]
    for names in (made, kinds):
        if len(names) == 1:
            return names[0]
    raise RecordError("model {} has no build_model() and no single module".format(model), "name it with --entry NAME")


def _made(home, name, arguments):
    if not hasattr(home, name):
        raise RecordError("{} has no {}".format(home.__name__, name), "check --entry")
    found = getattr(home, name)
    try:
        module = found if isinstance(found, torch.nn.Module) else found(**(arguments or {}))
    except Exception as error:
        raise RecordError("{}() raised {}: {}".format(name, type(error).__name__, error)) from error
    if not isinstance(module, torch.nn.Module):
        raise RecordError("{} made a {}, no torch.nn.Module".format(name, type(module).__name__), "check --entry")
    return module


def _read_arguments(path):
    _need(path, "--entry-args file")
    with open(path, "rb") as file:
        raw = file.read()
    if path.endswith(".json"):
        return json.loads(raw.decode())
    try:
        toml = importlib.import_module("tomllib")
    except ImportError:
        raise RecordError("{}: this Python reads no TOML".format(path), "write it as .json") from None
    return toml.loads(raw.decode())


def load_sample(path):
    """Positional and keyword inputs from a sample file."""
    _need(path, "sample")
    path = str(path)
    if path.endswith((".npy", ".npz")):
        content = np.load(path, allow_pickle=False)
        if not isinstance(content, np.ndarray):
            content = {name: torch.from_numpy(content[name]) for name in content.files}
    elif path.endswith(".safetensors"):
        content = read_safetensors(path)
    else:
        content = _read_torch(path, False, checkpoint=False)
    return as_sample(content, path)


def as_sample(content, source):
    """Positional and keyword inputs from what a sample file or a preprocessing function holds."""
    if isinstance(content, np.ndarray):
        content = torch.from_numpy(np.ascontiguousarray(content))
    if isinstance(content, torch.Tensor):
        return (content,), {}
    if isinstance(content, (tuple, list)):
        return tuple(torch.from_numpy(item) if isinstance(item, np.ndarray) else item for item in content), {}
    if isinstance(content, dict):
        if content and set(content) <= {"args", "kwargs"}:
            args = content.get("args") or ()
            return ((args,) if isinstance(args, torch.Tensor) else tuple(args)), dict(content.get("kwargs") or {})
        numbered = sorted(
            (int(found.group(1)), key) for key in content for found in [re.match(r"ar[gr]_(\d+)$", key)] if found
        )
        named = {key: item for key, item in content.items() if not re.match(r"ar[gr]_(\d+)$", key)}
        return tuple(content[key] for _, key in numbered), named
    raise RecordError("sample {} is of type {}, which is no input".format(source, type(content).__name__))


def _stand_in_for_the_package():
    """``from bisect_tool import tap`` and ``from bisect_recorder import tap`` work in the code that is recorded."""
    sys.modules.setdefault("bisect_recorder", sys.modules[__name__])
    if importlib.util.find_spec("bisect_tool") is None:
        stand_in = types.ModuleType("bisect_tool")
        stand_in.tap = tap
        sys.modules["bisect_tool"] = stand_in


def _arguments(given):
    parser = argparse.ArgumentParser(description="Records what a PyTorch model computes, for bisect-tool compare.")
    parser.add_argument("model", nargs="?", help="model.py, package.module:NAME or a TorchScript archive")
    parser.add_argument("checkpoint", nargs="?", help="its weights")
    parser.add_argument("--input", help="sample: .pt .pth .npz .npy .safetensors")
    parser.add_argument("--preprocess", metavar="MODULE:FUNCTION", help="makes the sample from --raw")
    parser.add_argument("--raw", help="file given to --preprocess")
    parser.add_argument("-o", "--output", required=True, metavar="BUNDLE", help="file to write, as a.trace; needed")
    parser.add_argument("--entry", help="function, class or instance in MODEL")
    parser.add_argument("--entry-args", help="TOML or JSON file with the entry's keyword arguments")
    parser.add_argument("--device", default="auto", help="auto, where the model was built; cpu or cuda")
    parser.add_argument("--mode", choices=("eval", "train"), default="eval", help="mode of the model")
    parser.add_argument("--seed", type=int, help="seed Python, numpy and torch before the model is built")
    parser.add_argument("--threads", type=int, default=0, help="threads of the run; 0: torch's own number")
    parser.add_argument(
        "--level", choices=("leaf", "op"), default="leaf", help="op: operations inside leaf modules too"
    )
    parser.add_argument(
        "--stages",
        action="append",
        default=[],
        metavar="GLOB",
        help="keep the tensors of these stages only; repeatable",
    )
    parser.add_argument("--script", help="a training script to record instead; its own arguments behind --")
    parser.add_argument("--steps", type=int, default=3, help="steps of the script's optimiser")
    flags = (
        ("--summary", "kilobytes: statistics, digests and projections instead of tensors"),
        ("--folder", "write a folder instead of one file"),
        ("--force", "replace a recording that is there, and nothing else"),
        ("--allow-pickle", "unpickle the checkpoint: runs code in it"),
        ("--allow-missing", "accept a checkpoint without some of the keys"),
        ("--allow-unexpected", "accept a checkpoint with keys the model lacks"),
    )
    for name, text in flags:
        parser.add_argument(name, action="store_true", help=text)
    given = list(sys.argv[1:] if given is None else given)
    at = given.index("--") if "--" in given and "--script" in given else len(given)
    options = parser.parse_args(given[:at])
    options.arguments = given[at + 1 :]
    return options


def place_model(module, args, kwargs, device):
    """Moves a model and its inputs to a device; ``auto`` leaves the model where it is. Returns all three and the device."""
    first = next((tensor for tensor in list(module.parameters()) + list(module.buffers())), None)
    wanted = (first.device if first is not None else torch.device("cpu")) if device == "auto" else torch.device(device)
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise RecordError("--device {}: PyTorch sees no CUDA device here".format(device), "--device cpu")

    def move(item):
        if isinstance(item, torch.Tensor):
            return item.to(wanted)
        if isinstance(item, dict):
            return {key: move(child) for key, child in item.items()}
        if isinstance(item, tuple) and hasattr(item, "_make"):
            return type(item)._make(move(child) for child in item)
        if type(item) in (tuple, list):
            return type(item)(move(child) for child in item)
        return item

    # An archive's modules say where they are to be, and moving what is there already may not be possible.
    moved = module.to(wanted) if device != "auto" else module
    return moved, move(tuple(args)), move(dict(kwargs)), str(wanted)


def set_mode(module, mode):
    """``eval`` or ``train``."""
    module.train(mode == "train")


def main(given=None):
    """Records one run. Returns the exit code: 0 done, 2 bad usage or unreadable input."""
    options = _arguments(given)
    try:
        path = _record(options)
    except RecordError as error:
        print("error: " + error.message, file=sys.stderr)
        if error.hint:
            print("help: " + error.hint, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    print("recorded " + path)
    return 0


def _record(options):
    if options.script:
        return _record_script(options)
    if not options.model:
        raise RecordError("no model given", "model.py ckpt.pth --input sample.pt")
    if bool(options.input) == bool(options.preprocess) or bool(options.preprocess) != bool(options.raw):
        raise RecordError("give either --input, or --preprocess and --raw", "--input sample.pt")
    check_target(options.output, options.folder, options.force)
    _stand_in_for_the_package()
    if options.threads:
        torch.set_num_threads(options.threads)
    every_op = options.level == "op"
    files = [("model", options.model)] if os.path.isfile(options.model) and not options.model.endswith(".py") else []
    with Recording(
        options.output, options.summary, options.stages, every_op, options.folder, options.force
    ) as recording:
        if options.seed is not None:
            seed_all(options.seed)
        recording.moment("start")
        arguments = _read_arguments(options.entry_args) if options.entry_args else None
        module, place = build_model(options.model, options.entry, arguments)
        if options.checkpoint:
            state = load_weights(options.checkpoint, options.allow_pickle)
            apply_weights(module, state, options.checkpoint, options.allow_missing, options.allow_unexpected)
            files.append(("checkpoint", options.checkpoint))
        recording.moment("built")
        if options.input:
            args, kwargs = load_sample(options.input)
            files.append(("input", options.input))
        else:
            args, kwargs = _preprocessed(options.preprocess, options.raw)
            files.extend([("raw", options.raw)] if os.path.isfile(options.raw) else [])
        recording.moment("sample")
        set_mode(module, options.mode)
        module, args, kwargs, device = place_model(module, args, kwargs, options.device)
        recording.run(module, args, kwargs)
        configuration = configuration_of(
            module,
            entry=options.entry,
            entry_args=arguments,
            preprocess=options.preprocess,
            device=device,
            mode=options.mode,
            seed=options.seed,
        )
        command = "bisect_recorder.py " + " ".join(sys.argv[1:])
        return recording.finish(configuration, files, place, command=command)


def _record_script(options):
    check_target(options.output, options.folder, options.force)
    _stand_in_for_the_package()
    if options.threads:
        torch.set_num_threads(options.threads)
    with Recording(options.output, options.summary, (), False, options.folder, options.force) as recording:
        if options.seed is not None:
            seed_all(options.seed)
        configuration = record_script(recording, options.script, options.arguments, options.steps)
        configuration["seed"] = options.seed
        command = "bisect_recorder.py " + " ".join(sys.argv[1:])
        path = recording.finish(configuration, (), options.script, command=command, extra={"kind": "script"})
        for note in recording.notes:
            print("note: " + note, file=sys.stderr)
        return path


def _preprocessed(target, raw):
    import pathlib

    if not os.path.exists(raw):
        raise RecordError("--raw {}: no such file".format(raw), "give the file that the preprocessing starts from")
    home_name, _, name = target.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        home = importlib.import_module(home_name)
    except Exception as error:
        raise RecordError(
            "--preprocess: {} cannot be imported ({}: {})".format(home_name, type(error).__name__, error),
            "run from the folder that holds it, or install it",
        ) from error
    if not callable(getattr(home, name, None)):
        raise RecordError("--preprocess: {} has no function {}".format(home_name, name), "give module:function")
    try:
        content = getattr(home, name)(pathlib.Path(raw))
    except RecordError:
        raise
    except Exception as error:  # the user's code may raise anything
        lines = str(error).splitlines()
        raise RecordError(
            "--preprocess {}: {}: {}".format(target, type(error).__name__, lines[0] if lines else ""),
            "call {}({!r}) on its own to see the whole traceback".format(name, str(raw)),
        ) from error
    return as_sample(content, target)


def configuration_of(module, **chosen):
    """The choices behind a PyTorch run, with the dtype that the model turned out to have."""
    counts = {}
    for tensor in module.parameters():
        if tensor.is_floating_point():
            counts[dtype_name(tensor.dtype)] = counts.get(dtype_name(tensor.dtype), 0) + tensor.numel()
    dtype = max(counts, key=counts.get) if counts else None
    return {"backend": "torch", "dtype": dtype, **chosen}


if __name__ == "__main__":
    sys.exit(main())
