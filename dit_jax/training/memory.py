"""What a compiled program takes of a device's memory, and what helps where it is too much."""

import jax

from dit_jax.core.errors import UserError


class TooLarge(UserError):
  """A program does not fit a device's memory."""


def compiled(stage: str, compile_):
  """What `compile_()` returns.

  Args:
    stage: name for the message.
    compile_: compiles a program; for TPUs, that refuses one too large for them.

  Raises:
    TooLarge: it did; its cause is the compiler's own error.
  """
  try:
    return compile_()
  except jax.errors.JaxRuntimeError as e:
    if "RESOURCE_EXHAUSTED" not in str(e):
      raise
    raise TooLarge(_too_little(stage, str(e).splitlines()[0])) from e


def needed(program) -> int:
  """Bytes on one device: arguments, results that alias none of them, and temporaries."""
  m = program.memory_analysis()
  results = m.output_size_in_bytes - m.alias_size_in_bytes
  return m.argument_size_in_bytes + results + m.temp_size_in_bytes


def check(stage: str, program, device) -> None:
  """Refuses a program that the device cannot hold, before it runs.

  Args:
    stage: name for the message.
    program: a compiled jax function.
    device: one of those that it runs on; one that does not say its limit (a CPU) takes anything.

  Raises:
    TooLarge: with the bytes and the fields that help.
  """
  limit = (device.memory_stats() or {}).get("bytes_limit")
  if limit and needed(program) > limit:
    raise TooLarge(
      _too_little(
        stage, f"{needed(program) / 2**30:.2f} GiB of the {limit / 2**30:.2f} GiB of {device}"
      )
    )


def _too_little(stage: str, what: str) -> str:
  """The message for a step that does not fit."""
  remat = "" if stage == "dvae" else f"set {stage}.model.remat=dots or full, "
  return (
    f"a step of the stage {stage} does not fit: {what}. Raise {stage}.accum, {remat}or split the "
    "parameters with mesh.fsdp (none of these changes what is learned), or lower "
    f"{stage}.batch_size."
  )
