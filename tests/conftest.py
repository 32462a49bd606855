"""What every test needs before jax is imported, and the order of the files."""

import os
from importlib import metadata

# Eight CPU devices for the tests of meshes; an accelerator only where the caller names it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile far longer than they run: LLVM's optimisations cost three times what they save.
_FLAGS = {
  "--xla_force_host_platform_device_count": 8,
  "--xla_backend_optimization_level": 0,
}
if metadata.version("jaxlib").startswith("0.10."):  # later ones end at a flag they do not know
  _FLAGS["--xla_cpu_use_fusion_emitters"] = "false"  # the older way compiles in half the time
for _flag, _value in _FLAGS.items():
  if _flag not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}={_value}".strip()

_LONGEST = (  # files that take minutes, with --all; begun last, one of them would run alone
  *("test_resume", "test_processes", "test_memorisation", "test_kernels", "test_grain_statistics"),
  *("test_notebooks", "test_demo", "test_end_to_end", "test_meshes", "test_reproduce"),
)


def pytest_collection_modifyitems(items):
  place = {name: i for i, name in enumerate(_LONGEST)}
  items.sort(key=lambda item: place.get(item.path.stem, len(place)))
