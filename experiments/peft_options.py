"""Every option of Hugging Face PEFT's configs and what it is here: docs/from_hf_peft.md.

python -m experiments.peft_options
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from peftjax.config import ALIASES
from peftjax.files import write_text
from peftjax.interop.config_in import INIT
from peftjax.interop.formats import FORMATS
from peftjax.interop.formats.base import COMMON, Format

PAGE = Path(__file__).parents[1] / "docs" / "from_hf_peft.md"
GENERAL = {
  "target_modules": "`method.targets`",
  "exclude_modules": "`method.exclude`",
  "layers_to_transform": "`method.layers`",
  "layers_pattern": "not needed: the model knows its layers",
  "modules_to_save": "`method.modules_to_save`",
  "bias": "`method.bias`",
  "fan_in_fan_out": "not needed: the model knows how it stores its kernels",
}
READ = "not chosen here; read from a file, or said there by another option"
DEFAULT_ALONE = (
  "no such option: a file with another value than PEFT's default is refused, as it changes what is computed"
)
HEAD = """# Coming from Hugging Face PEFT

```python
# PEFT                                                      # here
model = AutoModelForCausalLM.from_pretrained(path)          model = peftjax.load(path)
config = LoraConfig(r=8, lora_alpha=16,                     method = peftjax.methods.LoRA(rank=8, alpha=16,
  target_modules=["q_proj", "v_proj"])                        targets=("q_proj", "v_proj"))
model = get_peft_model(model, config)                       model = model.add(method, jax.random.key(0))
model.print_trainable_parameters()                          print(model.summary())
model.save_pretrained("adapter")                            model.save_adapter("adapter")
PeftModel.from_pretrained(model, "adapter")                 peftjax.load(path, adapter="adapter")
model.merge_and_unload().save_pretrained("merged")          model.merge().save("merged")
```

Models are values: `add`, `merge` and the like return a new one. Adapters go both ways in PEFT's own files
([interop.md](interop.md) says for each method what comes back whole). Targets left out are PEFT's for the architecture.

On the command line a method's options are `--config.method.FIELD=value`; `peftjax config r` and the like find a field
by what PEFT, transformers' `TrainingArguments` and TRL call it:

"""


def keys(form: Format) -> list[str]:
  """The options of PEFT's config that are the method's own or choose its modules, in the order of that config."""
  return [key for key in form.defaults if key not in COMMON]


def said(form: Format, key: str) -> str:
  """What an option is here."""
  has = {field.name for field in dataclasses.fields(form.method)}
  found = f"`method.{form.fields[key]}`" if key in form.fields else GENERAL.get(key, "")
  if key == INIT or key == "init_lora_weights":
    found = "`method.init`"
  if found and (not found.startswith("`") or found.strip("`").removeprefix("method.") in has):
    return found
  return READ if key in form.free or key == INIT else DEFAULT_ALONE


def page() -> str:
  """The page as a whole."""
  lines = ["| elsewhere | here |", "|---|---|", *(f"| `{theirs}` | `{ours}` |" for theirs, ours in ALIASES.items())]
  for form in FORMATS:
    lines += ["", f"## {form.peft_type}: `{form.method.name}`", "", "| option | here |", "|---|---|"]
    lines += [f"| `{key}` | {said(form, key)} |" for key in keys(form)]
  common = ", ".join(f"`{key}`" for key in COMMON)
  return (
    HEAD + "\n".join(lines) + f"\n\nIn every config: {common}; `save_adapter` writes them, and loading checks them.\n"
  )


if __name__ == "__main__":
  write_text(PAGE, page())
