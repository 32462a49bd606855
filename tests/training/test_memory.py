"""A compiler's refusal becomes the user's message; every other error stays what it is."""

import jax
import pytest

from dit_jax.core.errors import UserError
from dit_jax.training import memory


def test_a_program_that_compiles_is_returned():
  assert memory.compiled("dct", lambda: "program") == "program"


def test_a_refusal_for_want_of_memory_says_what_helps():
  error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory: 20.1G of 16G\nmore")

  def refuses():
    raise error

  with pytest.raises(memory.TooLarge) as refused:
    memory.compiled("dct", refuses)
  assert refused.value.__cause__ is error
  assert isinstance(refused.value, UserError)
  text = str(refused.value)
  assert "dct does not fit" in text
  assert "20.1G of 16G" in text
  assert "\n" not in text
  assert "dct.accum" in text


def test_other_errors_of_a_compiler_are_ours():
  def breaks():
    raise jax.errors.JaxRuntimeError("INTERNAL: Mosaic failed")

  with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
    memory.compiled("dct", breaks)
