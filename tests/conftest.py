"""What every test runs under: the CPU, and no model hub."""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # oracles build their models from configs, never from a hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Most of the suite's time is code generation for tiny programs; the HLO, its FLOPs and its buffers stay as they are.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
