"""Shape types: checked in tests by jaxtyping's import hook, free where jaxtyping is absent."""

from typing import Any

from jax import Array
from jax.typing import ArrayLike, DTypeLike

try:
  from jaxtyping import Bool, Float, Int, Key, UInt8
except ImportError:  # many accelerator images carry jax and flax alone

  class _Unchecked:
    """Stands in for a jaxtyping class: `Float[Array, "b n d"]` means any value."""

    def __class_getitem__(cls, item):
      return Any

  Bool = Float = Int = Key = UInt8 = _Unchecked

__all__ = ["Array", "ArrayLike", "Bool", "DTypeLike", "Float", "Int", "Key", "UInt8"]
