"""Reads arrays out of a pickle without running it: no import, no call, no class of the file's.

A pickle is a program. This module interprets the instructions that build containers, numbers,
strings and numpy arrays, and refuses the file at the first other instruction or name, before that
instruction has any effect. It does not use the `pickle` machine: names stay strings, an array is
made by `numpy.frombuffer` from a shape, a numeric dtype and bytes. A reader of another format
(`torch_file`) gives its own names and what they stand for by value.
"""

import collections
import dataclasses
import io
import os
import pickletools
import reprlib
import sys

import numpy as np

from dit_jax.core.errors import UserError

NUMBERS = {"b": (1,), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "f": (2, 4, 8), "c": (8, 16)}
NUMERIC = {f"{c}{n}" for c, sizes in NUMBERS.items() for n in sizes}  # as "f4": kind and bytes
MARK = object()

CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
LITERALS = {
  *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
  *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
  *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
}
EMPTY = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}
GETS = {"GET", "BINGET", "LONG_BINGET"}
NOTHING = {"PROTO", "FRAME"}
PLAIN = sys.hash_info.modulus  # integers of this size and more share hashes, as many as one likes


class Refused(Exception):
  """An instruction outside the list; `load` names the file."""


class Token:
  """What a file may mention but not hold as data."""


@dataclasses.dataclass(frozen=True)
class Name(Token):
  """A global that the file may mention: a token, never the thing itself."""

  path: str


class Pending:
  """What a call made and BUILD may complete."""

  def set_state(self, state) -> None:
    """Takes the state, or raises Refused."""
    raise Refused(f"the state {show(state)}")


@dataclasses.dataclass(eq=False)
class PendingDType(Token, Pending):
  """numpy.dtype between its call and its state."""

  dtype: np.dtype

  def set_state(self, state) -> None:
    """Takes the byte order; everything else must say "a plain number"."""
    match state:
      case (int(), str(order), None, None, None, int(), int(), int()) if order in "<>=|":
        self.dtype = self.dtype.newbyteorder(order)
      case _:
        raise Refused(f"the state {show(state)} of a dtype")


@dataclasses.dataclass(eq=False)
class PendingArray(Pending):
  """numpy.ndarray between its call and its state."""

  array: np.ndarray | None = None

  def set_state(self, state) -> None:
    """Makes the array from (version, shape, dtype, fortran order, bytes)."""
    match state:
      case (int(), tuple(shape), PendingDType(dtype=dtype), bool(fortran), bytes(data)):
        self.array = _array(shape, dtype, fortran, data)
      case _:
        raise Refused(f"the state {show(state)} of an array")


def _array(shape: tuple, dtype: np.dtype, fortran: bool, data: bytes) -> np.ndarray:
  if not all(type(n) is int and n >= 0 for n in shape):
    raise Refused(f"the shape {show(shape)}")
  size = dtype.itemsize
  for n in shape:  # Python integers: no overflow
    size *= n
  if size != len(data):
    raise Refused(f"an array of shape {shape} and dtype {dtype} with {len(data)} bytes")
  return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C").copy()


def _make_dtype(args: tuple) -> PendingDType:
  match args:
    case (str(code), bool() | int(), bool() | int()) if code in NUMERIC:
      return PendingDType(np.dtype(code))
  raise Refused(f"numpy.dtype called with {show(args)}")


def _make_array(args: tuple) -> PendingArray:
  if args != (Name("numpy.ndarray"), (0,), b"b"):
    raise Refused(f"an array made from {show(args)}")
  return PendingArray()


def _make_ordered_dict(args: tuple) -> dict:
  if args:
    raise Refused("collections.OrderedDict with arguments")
  return collections.OrderedDict()


ARRAYS = {
  "numpy.ndarray": None,  # named, never called
  "numpy.dtype": _make_dtype,
  "numpy.core.multiarray._reconstruct": _make_array,
  "numpy._core.multiarray._reconstruct": _make_array,
  "collections.OrderedDict": _make_ordered_dict,
}


def load(path, allowed: dict = ARRAYS):
  """The object in a pickle file: containers, numbers, strings, numpy arrays.

  Args:
    path: the file.
    allowed: global name -> function of the call's arguments, or None for a name that is never
      called; nothing else may be named.

  Raises:
    UserError: the file is missing, broken, or does anything else; nothing of it has been run.
  """
  try:
    with open(path, "rb") as f:
      return loads(f.read(), allowed)
  except OSError as e:
    raise UserError(f"{os.fspath(path)} cannot be read ({e.strerror}); check the path.") from e
  except UserError as e:
    raise UserError(f"{os.fspath(path)}: {e}") from e.__cause__


def loads(data: bytes, allowed: dict = ARRAYS, persistent=None):
  """`load` of bytes.

  Args:
    data: the pickle.
    allowed: as of `load`.
    persistent: function of a persistent id (a BINPERSID's argument); None refuses them.
  """
  try:
    return _Machine(allowed, persistent).run(data)
  except Refused as e:
    raise UserError(
      f"this pickle was refused and not run: it holds {e}, not arrays alone; take weights from a "
      "source that you trust, best as safetensors."
    ) from e
  except (ArithmeticError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as e:
    raise UserError(
      f"this is not a readable pickle of arrays ({type(e).__name__}: {show(str(e))}); "
      "download it again."
    ) from e


class _Machine:
  """A stack, the marks in it, and a memo; one method a kind of instruction."""

  def __init__(self, allowed: dict, persistent):
    self.allowed, self.persistent = allowed, persistent
    self.stack, self.memo = [], {}

  def run(self, data: bytes):
    for op, arg, _ in pickletools.genops(io.BytesIO(data)):
      if op.name == "STOP":
        return _finish(self.stack.pop(), {})
      self.step(op.name, arg)
    raise ValueError("no STOP")

  def step(self, op: str, arg) -> None:
    stack = self.stack
    if op in NOTHING:
      pass
    elif op in CONSTANTS:
      stack.append(CONSTANTS[op])
    elif op in LITERALS:
      stack.append(arg)
    elif op in EMPTY:
      stack.append(EMPTY[op]())
    elif op == "MARK":
      stack.append(MARK)
    elif op in TUPLES:
      stack.append(tuple([stack.pop() for _ in range(TUPLES[op])][::-1]))
    elif op == "TUPLE":
      stack.append(tuple(self.pop_mark()))
    elif op in ("APPEND", "APPENDS"):
      items = [stack.pop()] if op == "APPEND" else self.pop_mark()
      self.top(list).extend(items)
    elif op in ("SETITEM", "SETITEMS"):
      items = [stack.pop(), stack.pop()][::-1] if op == "SETITEM" else self.pop_mark()
      if not all(map(_is_key, items[::2])):
        raise Refused("a key that is neither text nor a number of common size")
      self.top(dict).update(zip(items[::2], items[1::2], strict=True))
    elif op in PUTS and _is_key(arg):
      self.memo[arg] = stack[-1]
    elif op == "MEMOIZE":
      self.memo[len(self.memo)] = stack[-1]
    elif op in GETS:
      stack.append(self.memo[arg])
    else:
      self.step_named(op, arg)

  def step_named(self, op: str, arg) -> None:
    """The instructions with which a pickle reaches out of itself."""
    stack = self.stack
    if op == "GLOBAL":
      stack.append(self.name(arg.replace(" ", ".", 1)))
    elif op == "STACK_GLOBAL":
      name, module = stack.pop(), stack.pop()
      if not (isinstance(name, str) and isinstance(module, str)):
        raise Refused(f"the name {show((module, name))}")
      stack.append(self.name(f"{module}.{name}"))
    elif op in ("REDUCE", "NEWOBJ"):
      args, function = stack.pop(), stack.pop()
      make = self.allowed.get(function.path) if isinstance(function, Name) else None
      if make is None or not isinstance(args, tuple):
        raise Refused(f"a call of {show(function)}")
      stack.append(make(args))
    elif op == "BUILD":
      state, target = stack.pop(), stack[-1]
      if not isinstance(target, Pending):
        raise Refused(f"setting the state of {show(target)}")
      target.set_state(state)
    elif op == "BINPERSID" and self.persistent:
      stack.append(self.persistent(stack.pop()))
    else:
      raise Refused(f"the instruction {op}")

  def name(self, path: str) -> Name:
    if path not in self.allowed:
      raise Refused(f"the name {show(path)}")
    return Name(path)

  def pop_mark(self) -> list:
    start = len(self.stack) - 1
    while self.stack[start] is not MARK:
      start -= 1
      if start < 0:
        raise IndexError("no mark")
    items = self.stack[start + 1 :]
    del self.stack[start:]
    return items

  def top(self, kind: type):
    if not isinstance(self.stack[-1], kind):
      raise Refused(f"adding items to {show(self.stack[-1])}")
    return self.stack[-1]


def _is_key(x) -> bool:
  """Whether a dict takes x in constant time."""
  return isinstance(x, str) or (isinstance(x, int) and abs(x) < PLAIN)


class _Short(reprlib.Repr):
  def repr_instance(self, x, level):
    """Of the other kinds of dict as of dict, which reprlib would write out whole."""
    return self.repr_dict(x, level) if isinstance(x, dict) else super().repr_instance(x, level)


def show(x) -> str:
  """A bounded repr: that of nested shared containers can be exponentially long."""
  return _Short().repr(x)[:80]


def _finish(x, done: dict):
  """x with arrays in place of pending ones; shared parts once, and no cycles."""
  if id(x) in done:
    if done[id(x)] is MARK:
      raise Refused("a container that contains itself")
    return done[id(x)]
  if isinstance(x, Token) or x is MARK:
    raise Refused(f"{show(x)} as data")
  if isinstance(x, PendingArray):
    if x.array is None:
      raise Refused("an array without data")
    return x.array
  if not isinstance(x, dict | list | tuple):
    return x
  done[id(x)] = MARK
  if isinstance(x, dict):
    out = type(x)((_finish(k, done), _finish(v, done)) for k, v in x.items())
  else:
    out = type(x)(_finish(v, done) for v in x)
  done[id(x)] = out
  return out
