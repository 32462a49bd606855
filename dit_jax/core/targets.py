"""Accelerators that programs are compiled for without having them: names to meshes.

TPUs need the wheel libtpu (extra `tpu`), NVIDIA GPUs the CUDA plugin (extra `cuda`); both compile
on a machine with a CPU alone.
"""

import os
import re

H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132
  fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 4800000000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 151397597184
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  device_vendor: "NVIDIA Corporation" device_address_bits: 64
  pcie_bandwidth: 34359738368 ecc_enabled: true name: "NVIDIA H200 141GB HBM3e"
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.10.0"
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H200 141GB HBM3e"
"""
EXAMPLES = "v5e:4x4, v5p:2x2x2, v6e:16x16, h200, h200x8"
# Bytes that programs can have. TPU compilers refuse what does not fit; those of GPUs do not, and a
# tenth of their memory is left to the driver, to libraries and to fragmentation.
MEMORY = {"h200": 0.9 * 151397597184}


def devices(target: str) -> list:
  """Devices of a target that need not exist, for `Mesh` and ahead-of-time compilation.

  Args:
    target: a TPU topology ("v5e:2x4"), "h200" or "h200x8".

  Raises:
    ValueError: the name is none of these.
    RuntimeError: the compiler of the target is not installed.
  """
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no metadata server to ask
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")
  from jax.experimental import topologies

  if gpus := re.fullmatch(r"h200(?:x(\d+))?", target):
    count = gpus[1] or "1"
    return topologies.get_topology_desc(
      platform="cuda", target_config=H200, topology=f"1x1x{count}"
    ).devices
  if re.fullmatch(r"v\w+:\d+x\d+(x\d+)?", target):
    return topologies.get_topology_desc(target, platform="tpu").devices
  raise ValueError("no such machine is known")


def memory(target: str) -> float:
  """Bytes of a device that a program may need; infinite where the compiler itself refuses."""
  return MEMORY.get(target.partition("x")[0], float("inf"))
