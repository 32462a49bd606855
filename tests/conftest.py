"""What every test needs before jax is imported."""

import os

# Eight CPU devices for the tests of meshes; an accelerator only where the caller names it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile far longer than they run: LLVM's optimisations cost three times what they save.
_FLAGS = {
  "--xla_force_host_platform_device_count": 8,
  "--xla_backend_optimization_level": 0,
}
for _flag, _value in _FLAGS.items():
  if _flag not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}={_value}".strip()
