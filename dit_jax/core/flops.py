"""FLOPs of a function, counted from its jaxpr: matrix products and convolutions, nothing else.

A multiply-add counts two. Loops are multiplied by their length, so a scanned model counts in full
(XLA's own cost analysis counts a scanned body once).
"""

import math

import jax
from jax.sharding import AbstractDevice, AbstractMesh

CPU = AbstractMesh(
  (1,), ("x",), abstract_device=AbstractDevice(device_kind="cpu", num_cores=None, platform="cpu")
)


def count(fn, *args) -> int:
  """FLOPs of fn(*args); arrays may be ShapeDtypeStructs, nothing is computed.

  Traced as for a CPU, whose programs have no kernels that cannot be counted.
  """
  with jax.sharding.use_abstract_mesh(CPU):
    return _count(jax.make_jaxpr(fn)(*args).jaxpr)


def _count(jaxpr) -> int:
  return sum(_of_equation(eqn) for eqn in jaxpr.eqns)


def _of_equation(eqn) -> int:
  name, params = eqn.primitive.name, eqn.params
  if name == "dot_general":
    (contract, _), _ = params["dimension_numbers"]
    return 2 * eqn.outvars[0].aval.size * math.prod(eqn.invars[0].aval.shape[i] for i in contract)
  if name == "conv_general_dilated":
    kernel, out = eqn.invars[1].aval, eqn.outvars[0].aval
    out_features = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
    return 2 * out.size * kernel.size // out_features // params["batch_group_count"]
  if name == "scan":
    return params["length"] * _count(params["jaxpr"].jaxpr)
  if name == "cond":
    return max(_count(branch.jaxpr) for branch in params["branches"])
  return sum(_count(inner) for inner in _inner_jaxprs(params))


def _inner_jaxprs(params):
  for value in params.values():
    for item in value if isinstance(value, tuple | list) else (value,):
      if hasattr(item, "eqns"):
        yield item
      elif hasattr(item, "jaxpr") and hasattr(item.jaxpr, "eqns"):
        yield item.jaxpr
