"""NVIDIA's cards as XLA's compiler wants them described, so that it compiles for one that is not here."""

from __future__ import annotations

import dataclasses
import os

from peftjax.errors import UserError

KIB, MIB = 2**10, 2**20
# Of a card's memory JAX takes this much, unless the environment says otherwise (JAX's page on GPU memory).
SHARE = 0.75
SHARE_VARIABLES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")


@dataclasses.dataclass(frozen=True)
class Card:
  """What a card's data sheet and CUDA's `deviceQuery` say of it; figures of a multiprocessor are those of its compute
  capability (CUDA C++ Programming Guide, "Compute Capabilities").

  Attributes:
    product: its name.
    memory: bytes that CUDA sees.
    capability: compute capability, (major, minor).
    multiprocessors: their number.
    lanes: float32 units in each.
    threads: most threads that one holds.
    shared, shared_block: bytes of shared memory in each, and the most that a block can ask for.
    l2: bytes of the second cache.
    bandwidth: bytes of memory a second.
    clock: GHz, at most.
  """

  product: str
  memory: int
  capability: tuple[int, int]
  multiprocessors: int
  lanes: int
  threads: int
  shared: int
  shared_block: int
  l2: int
  bandwidth: float
  clock: float

  def described(self, name: str) -> str:
    """XLA's GpuTargetConfigProto as text, of a device of this name."""
    major, minor = self.capability
    own = "ACCELERATED_FEATURES" if major >= 9 else "NONE"  # code of its capability alone, such as wgmma
    return f"""
      gpu_device_info {{
        name: "{self.product}" device_vendor: "NVIDIA Corporation" device_address_bits: 64
        cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {own} }}
        device_memory_size: {self.memory} memory_bandwidth: {int(self.bandwidth)} l2_cache_size: {self.l2}
        core_count: {self.multiprocessors} fpus_per_core: {self.lanes} clock_rate_ghz: {self.clock}
        threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: {self.threads}
        registers_per_block_limit: 65536 registers_per_core_limit: 65536
        shared_memory_per_block: {48 * KIB} shared_memory_per_block_optin: {self.shared_block}
        shared_memory_per_core: {self.shared}
        block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
        thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
      }}
      platform_name: "CUDA"
      dnn_version_info {{ major: 9 minor: 10 }}
      device_description_str: "{name}"
    """


_A100 = Card(
  "NVIDIA A100-SXM4-40GB", 42331013120, (8, 0), 108, 64, 2048, 164 * KIB, 163 * KIB, 40 * MIB, 1555.2e9, 1.41
)
CARDS = {
  "t4": Card("Tesla T4", 15843721216, (7, 5), 40, 64, 1024, 64 * KIB, 64 * KIB, 4 * MIB, 320e9, 1.59),
  "v100-16gb": Card(
    "Tesla V100-SXM2-16GB", 16935682048, (7, 0), 80, 64, 2048, 96 * KIB, 96 * KIB, 6 * MIB, 898e9, 1.53
  ),
  "a100-40gb": _A100,
  "a100-80gb": dataclasses.replace(_A100, product="NVIDIA A100-SXM4-80GB", memory=85100068864, bandwidth=2039e9),
  "h100-80gb": Card(
    "NVIDIA H100 80GB HBM3", 84942979072, (9, 0), 132, 128, 2048, 228 * KIB, 227 * KIB, 50 * MIB, 3352.3e9, 1.98
  ),
}


def usable_bytes(name: str) -> int:
  """Bytes of a card's memory that a program may use under JAX, by its name in `CARDS`.

  Raises:
    UserError: the environment asks for a share that is no number above 0.
  """
  variable = next((one for one in SHARE_VARIABLES if os.environ.get(one)), "")
  said = os.environ.get(variable, "")
  try:
    share = float(said) if said else SHARE
  except ValueError:
    share = 0.0
  if not 0 < share < float("inf"):
    raise UserError(f"{variable}={said}: expected the share of a card's memory, such as {SHARE}")
  return int(CARDS[name].memory * share)
