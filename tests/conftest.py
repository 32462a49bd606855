"""What every test needs before jax is imported, and which tests run only with --all."""

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


def pytest_addoption(parser):
  parser.addoption("--all", action="store_true", help="also run the tests marked `all`")


def pytest_collection_modifyitems(config, items):
  """Deselects the tests marked `all`, unless --all or an -m expression asks otherwise."""
  if config.getoption("--all") or config.getoption("-m"):
    return
  kept = [item for item in items if item.get_closest_marker("all") is None]
  config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
  items[:] = kept
