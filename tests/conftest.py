"""What every test runs under: the CPU, and no model hub."""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # oracles build their models from configs, never from a hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
