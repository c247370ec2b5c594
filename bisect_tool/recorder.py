"""Records what a PyTorch run computed: every operation, every module call, and the tensors one asks for.

One self-contained file: Python 3.8, torch 1.13 and numpy are enough, nothing of the package is imported.

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

import contextlib
import os
import sys
import weakref

import torch
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import TorchDispatchMode

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

    # -- life ---------------------------------------------------------------------------------------------------------

    def __enter__(self):
        self._handles = [torch_module.register_module_forward_pre_hook(self._before_module)]
        try:
            # Called after an exception too, which the model may catch.
            handle = torch_module.register_module_forward_hook(self._after_module, always_call=True)
        except TypeError:  # torch 1.13; there, what an exception leaves on the stack is dropped by the next module
            handle = torch_module.register_module_forward_hook(self._after_module)
        self._handles.append(handle)
        self._mode = _Mode(self)
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

    def _copy_before_write(self, tensor):
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

    def _record_op(self, name, inputs, outputs, source, in_place, view=False):
        frame = self._stack[-1] if self._stack else -1
        op = Op(len(self.trace.ops), name, frame, inputs, [], source, in_place)
        op.body = None if self._mode is None else self._mode.body
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
                self._copy_before_write(tensor)
            # Before the operation: afterwards what it wrote into is another value.
            call = (func, self._taped(args), self._taped(kwargs)) if self.tape else None
            result = func(*args, **kwargs)
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


class _Mode(TorchDispatchMode):
    supports_higher_order_operators = True

    def __init__(self, recorder):
        super().__init__()
        self._recorder = recorder
        self.body = None

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
