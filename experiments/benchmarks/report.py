"""docs/performance.md and its plots, written from what the benchmarks recorded.

    python -m experiments.benchmarks.report                              from experiments/accelerator/record
    python -m experiments.benchmarks.report --record=runs/benchmarks     from figures of one's own

A figure is never typed: tables come from the JSON files, and what has no file, or failed, is named as not run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt

from peftjax.files import write_text

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "experiments" / "accelerator" / "record"
COMMANDS = {
  "training_steps": "training steps against torch + PEFT",
  "attention": "attention's backends by length",
  "methods": "every method against LoRA",
  "sweeps": "many runs at once against as many single ones",
  "waiting": "how long the device waits for the host in a whole `train`",
  "profile_step": "where a step's time goes",
}
Found = Mapping[str, Any]


def main() -> None:
  """Writes the page."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--record", default=str(RECORD))
  parser.add_argument("--out", default=str(ROOT / "docs" / "performance.md"))
  flags = parser.parse_args()
  record = {path.stem: json.loads(path.read_text()) for path in sorted(Path(flags.record).glob("*.json"))}
  write_text(Path(flags.out), page(record, Path(flags.out).parent / "images"))


def page(record: Mapping[str, Found], images: Path) -> str:
  """The page's text; its plots are written into `images`."""
  parts = [INTRODUCTION]
  sections: dict[str, Callable[[Found, Path], str]] = {
    "environment": environment,
    "training_steps": training_steps,
    "attention": attention,
    "methods": methods_table,
    "sweeps": sweeps,
    "waiting": waiting,
    "smoke": smoke,
  }
  parts += [write(record[name], images) for name, write in sections.items() if name in record]
  if "cpu_training_steps" in record:
    parts.append(cpu_steps(record["cpu_training_steps"]))
  if "start_up" in record:
    parts.append(start_up(record["start_up"], images))
  parts += [profile(found) for name, found in record.items() if name.startswith("profile_")]
  return "\n".join([*parts, missing(record), COMMANDS_TEXT]).rstrip() + "\n"


def environment(found: Found, images: Path) -> str:
  """The device and its peaks."""
  del images
  peaks = ", ".join(f"{rate / 1e12:.0f} TFLOP/s in {dtype}" for dtype, rate in found["matmul_flops_per_second"].items())
  versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
  return (
    f"## The device\n\n{found['device']}. Products of two 8,192 × 8,192 matrices of random numbers ran at {peaks} "
    f"(JAX computes float32 products in TF32 there, unless it is asked for more). {versions}.\n"
  )


def training_steps(found: Found, images: Path) -> str:
  """Step times, throughput ratios, memory."""
  lines = ["| model | method | rival | ms a step (least to most) | tokens/s | utilisation | peak memory, GiB |"]
  lines.append("|---|---|---|---|---|---|---|")
  drawn, failed = [], []
  for row in found["rows"]:
    for rival, one in row["rivals"].items():
      if "seconds" not in one:
        failed.append(f"{row['shape']} {row['method']} with {rival}")
        continue
      times = one["seconds"]
      lines.append(
        f"| {row['shape']} | {row['method']} | {rival} | {milli(times['median'])} ({milli(times['least'])} to "
        f"{milli(times['most'])}) | {one['tokens_per_second']:,.0f} | {one['utilisation']:.2f} | "
        f"{one['peak_bytes'] / 2**30:.1f} |"
      )
    if "speedup" in row:
      drawn.append((f"{row['shape']}\n{row['method']}", row["speedup"], row.get("memory")))
  plot_ratios(drawn, images / "performance_training_steps.svg", str(found["device"]))
  ratios = "; ".join(
    f"{name.replace(chr(10), ' ')} {speed:.2f} × as fast with {memory:.2f} of its memory"
    for name, speed, memory in drawn
  )
  not_run = f"\nNot measured in this run: {', '.join(failed)}.\n" if failed else ""
  return (
    f"## Training steps against torch + PEFT\n\n{found['device']}, {found['precision']}. "
    f"Forward pass, loss, backward pass, clipping and AdamW; LoRA of rank 8 on all linear modules of the layers; what "
    f"trains is float32, a frozen base bfloat16. `torch` is eager. peftjax against it: {ratios}.\n\n"
    f"![Throughput over torch's](images/performance_training_steps.svg)\n\n" + "\n".join(lines) + "\n\n"
    f"*Utilisation* is the FLOPs that the model needs, none twice, over the time and the matmul peak of the same run "
    f"({found['matmul_flops_per_second'] / 1e12:.0f} TFLOP/s). Each rival ran alone on the device, in a process of its "
    f"own: {found['rounds']} rounds of {found['steps']} steps. Memory is the allocators' own peak. Limits: random "
    f"weights and full rows; one machine; eager torch is held up by its host at small batches, and where "
    f"`torch.compile` was not reached it may be the faster peer.\n{not_run}\n"
    f"    {found['command']}\n"
  )


def cpu_steps(found: Found) -> str:
  """Ratios of a step against torch on a CPU."""
  lines = ["| model | method | torch's time over ours, by round | torch's computing over ours | memory over torch's |"]
  lines.append("|---|---|---|---|---|")
  for row in found["rows"]:
    times = f"{row['speedups']['least']:.2f} to {row['speedups']['most']:.2f}"
    lines.append(f"| {row['shape']} | {row['method']} | {times} | {row['work']:.2f} | {row['memory']:.2f} |")
  return (
    f"## Training steps on a CPU\n\n{found['device']}, {found['precision']}; LoRA of rank 8 on all linear modules. "
    "Above 1 is ours. *Computing* is the processor time of a step over all threads, least of "
    f"{found['rounds']} steps; memory the processes' peaks. The machine did other work meanwhile, most of it while "
    "BERT's and GPT-2's LoRA ran, and that slows torch more: its threads wait for one another after every operation, "
    "one of them often without a core, and spin, which counts as computing. A row above 1 on a busy machine may not be "
    "on a quiet one. Rows that the command has and the table has not were not reached.\n\n" + "\n".join(lines) + "\n\n"
    "What was mended: of products that contract or keep several axes the compiler copied operands transposed, and "
    "computed within such a copy, against the order of the rows, whatever the gradient came from; on a CPU sequences' "
    "products are now ones of matrices. Dropout's draws hashed in a loop over whole arrays, and of an activation the "
    "backward pass kept up to three arrays where it needs one.\n\n"
    "Not met on a CPU: 1.3 × torch's throughput in full fine-tuning and in the LLaMA; full fine-tuning in no more "
    "memory than torch. Likely causes, by what the compiled step does beside its products: the layers are a loop, "
    "whose leaves are sliced out for each layer, forward and backward, and whose kept arrays are filled with zeros and "
    "copied first (unrolled layers compile so many times as long); the step's memory is given back after it, so that "
    "its pages are made anew in the next. What CI holds exactly, with tiny models of the six families: no wide array "
    "is copied transposed, FLOPs and bytes of LoRA against full fine-tuning, donated state "
    "(`tests/train/test_compiled_steps.py`); `import peftjax` and `--help` import no JAX (`tests/test_import.py`).\n\n"
    f"    {found['command']}\n"
  )


def start_up(found: Found, images: Path) -> str:
  """Seconds and memory to the first batch, by the number of examples."""
  rows = found["rows"]
  lines = ["| examples | file, MB | opened after, s | first batch after, s | held then, MB | at most, MB |"]
  lines.append("|---|---|---|---|---|---|")
  for row in rows:
    sizes = [f"{row[name] / 1e6:,.0f}" for name in ("file_bytes", "held_bytes", "peak_bytes")]
    times = f"{row['open_seconds']:.1f} | {row['first_batch_seconds']:.1f}"
    lines.append(f"| {row['examples']:,} | {sizes[0]} | {times} | {sizes[1]} | {sizes[2]} |")
  figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2))
  counts = [row["examples"] for row in rows]
  left.plot(counts, [row["first_batch_seconds"] for row in rows], "o-")
  left.set(xscale="log", yscale="log", xlabel="examples", ylabel="seconds to the first batch")
  right.plot(counts, [row["peak_bytes"] / 1e6 for row in rows], "o-")
  right.set(xscale="log", yscale="log", xlabel="examples", ylabel="MB of the host, at most")
  figure.tight_layout()
  save(figure, images / "performance_start_up.svg")
  return (
    f"## Start-up by the size of a text set\n\n{found['device']}, on which other work ran. Texts of 5 to 14 words as "
    "JSON lines, read from the file to the first batch; memory is what a process holds beyond what it held when all "
    "was imported. Up to 200,000 texts are tokenised once for their lengths, which the cache keeps; of more they "
    "are measured 32 batches at a time, as they come (`docs/data.md`).\n\n"
    "![Seconds and memory by the number of examples](images/performance_start_up.svg)\n\n"
    + "\n".join(lines)
    + f"\n\n    {found['command']}\n"
  )


def attention(found: Found, images: Path) -> str:
  """Milliseconds by length and backend."""
  names = list(dict.fromkeys(name for row in found["rows"] for name in row["seconds"]))
  lines = ["| length | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
  for row in found["rows"]:
    cells = [milli(row["seconds"][name]["median"]) if name in row["seconds"] else "" for name in names]
    lines.append(f"| {row['length']} | " + " | ".join(cells) + " |")
  figure, axes = plt.subplots(figsize=(7, 3.6))
  for name in names:
    rows = [row for row in found["rows"] if name in row["seconds"]]
    axes.plot([row["length"] for row in rows], [1e3 * row["seconds"][name]["median"] for row in rows], "o-", label=name)
  axes.set(xscale="log", yscale="log", xlabel="tokens in a sequence", ylabel="milliseconds", title=str(found["device"]))
  axes.set_xticks([row["length"] for row in found["rows"]], [f"{row['length']:,}" for row in found["rows"]])
  axes.minorticks_off()
  axes.legend(frameon=False, fontsize=8)
  save(figure, images / "performance_attention.svg")
  each = [row["seconds"] for row in found["rows"]]
  biased = [one["cudnn, padded"]["median"] / one["cudnn, causal"]["median"] for one in each if "cudnn, padded" in one]
  return (
    f"## Attention by length\n\n{found['device']}, {found['dtype']}: milliseconds of the gradient of one attention, "
    f"{found['heads']} query heads on {found['kv_heads']} key heads of {found['head_size']}, {found['tokens']:,} "
    f"tokens in a batch.\n\n![Attention by length](images/performance_attention.svg)\n\n" + "\n".join(lines) + "\n\n"
    "`auto` takes `cudnn` on CUDA devices for bfloat16 and float16 (`peftjax/models/cudnn.py` says when it does not: "
    "dropped or capped weights, odd sizes with a mask, masks of many runs at once, float32). Padding and segments go "
    f"in as a bias, which took {min(biased):.1f} to {max(biased):.1f} times as long as the causal mask alone.\n\n"
    f"    {found['command']}\n"
  )


def methods_table(found: Found, images: Path) -> str:
  """Each method's time over LoRA's."""
  del images
  lines = ["| method | time over LoRA's | FLOPs over LoRA's | temporary bytes over LoRA's |", "|---|---|---|---|"]
  for row in sorted(found["rows"], key=lambda row: row["over_lora"]["median"]):
    ratio = row["over_lora"]
    lines.append(
      f"| {row['method']} | {ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f}) | "
      f"{row['flops_over_lora']:.2f} | {row['temp_over_lora']:.2f} |"
    )
  title = f"## Every method against LoRA\n\n{found['device']}, {found['shape']}, {found['precision']}.\n\n"
  return title + "\n".join(lines) + f"\n\n    {found['command']}\n"


def sweeps(found: Found, images: Path) -> str:
  """A step of many runs over as many single steps."""
  del images
  lines = ["| runs at once | time over as many single steps | temporary, GiB |", "|---|---|---|"]
  for row in found["rows"]:
    ratio = row["over_single"]
    times = f"{ratio['median']:.3f} ({ratio['least']:.3f} to {ratio['most']:.3f})"
    lines.append(f"| {row['runs']} | {times} | {row['temp_bytes'] / 2**30:.1f} |")
  title = f"## Many runs at once\n\n{found['device']}, LoRA on {found['shape']}, {found['precision']}.\n\n"
  return title + "\n".join(lines) + f"\n\n    {found['command']}\n"


def waiting(found: Found, images: Path) -> str:
  """The share of a whole run in which the device has nothing to do."""
  del images
  names = {"text": "LLaMA of 135M, packed texts", "pictures": "ViT-B/16, pictures"}
  lines = [
    f"- {names[row['run']]}, {row['rows']} rows: {100 * row['idle']:.1f}% of {milli(row['step_seconds'])} ms a step"
    for row in found["rows"]
  ]
  title = f"## Waiting for the host\n\n{found['device']}: the share of `train`'s middle updates in which no kernel ran."
  return title + "\n\n" + "\n".join(lines) + f"\n\n    {found['command']}\n"


def smoke(found: Found, images: Path) -> str:
  """What was checked on the device."""
  del images
  from peftjax.methods import METHODS

  lines = []
  for section, checks in found["sections"].items():
    passed = sum(check["passed"] for check in checks)
    worst = max(
      (check.get("float32", 0.0) for check in checks if isinstance(check.get("float32"), float)), default=None
    )
    extra = f"; float32 apart by at most {worst:.1e}" if worst else ""
    lines.append(f"- {section}: {passed} of {len(checks)} checks passed{extra}")
    lines += [f"  - failed: {one['check']}: {one.get('error', '')[:110]}" for one in checks if not one["passed"]]
  done = {check["check"] for check in found["sections"].get("methods", ())}
  left = [name for name in sorted(METHODS) if name not in done]
  not_run = f"\nNot reached in the time there was: {', '.join(left)}.\n" if left else ""
  return (
    f"## Checked on the device\n\n{found['device']}: methods against the same on the CPU (float32 in full precision, "
    "and bfloat16), families against transformers on torch, attention against float32, with gradients.\n\n"
    + "\n".join(lines) + f"\n{not_run}\n    python -m experiments.accelerator.smoke --out=runs/smoke\n"
  )  # fmt: skip


def profile(found: Found) -> str:
  """The kernels of a step."""
  kinds = {
    "matrix products": ("nvjet", "gemm", "cutlass", "sgemm"),
    "the fused kernel of attention": ("sdpa", "cudnn"),
    "copies between stacks of layers and their parts": ("memcpy", "dynamic_update_slice", "loop_broadcast"),
  }
  sums = dict.fromkeys([*kinds, "element by element and sums"], 0.0)
  for row in found["rows"]:
    name = next((kind for kind, words in kinds.items() if any(word in row["name"] for word in words)), None)
    sums[name or "element by element and sums"] += row["milliseconds_a_step"]
  lines = [f"- {name}: {one:.1f} ms" for name, one in sorted(sums.items(), key=lambda item: -item[1]) if one]
  return (
    f"## Profile of {found['shape']}, {found['method']}\n\n{found['device']}, {found['precision']}: "
    f"{1e3 * found['seconds']:.1f} ms a step, steps dispatched one after the other; the device had nothing to do "
    f"{100 * found['idle']:.1f}% of the time. The {len(found['rows'])} costliest kernels, "
    f"{sum(row['milliseconds_a_step'] for row in found['rows']):.1f} ms together:\n\n" + "\n".join(lines) + "\n\n"
    f"    {found['command']}\n"
  )


def missing(record: Mapping[str, Found]) -> str:
  """Benchmarks without figures."""
  have = {str(found.get("benchmark", name)) for name, found in record.items()}
  left = [f"{what} (`experiments/benchmarks/{name}.py`)" for name, what in COMMANDS.items() if name not in have]
  return f"## Not run\n\n{'; '.join(left) if left else 'Nothing that has a command'}.\n{KNOWN}"


def plot_ratios(rows: list[tuple[str, float, float | None]], path: Path, device: str) -> None:
  """Throughput over the better peer's, and memory over its."""
  figure, axes = plt.subplots(figsize=(7, 3.2))
  places = range(len(rows))
  axes.bar([place - 0.2 for place in places], [row[1] for row in rows], 0.38, label="throughput over torch's")
  axes.bar([place + 0.2 for place in places], [row[2] or 0 for row in rows], 0.38, label="memory over torch's")
  axes.axhline(1.0, color="grey", linewidth=0.8)
  axes.set_xticks(list(places), [row[0] for row in rows], fontsize=8)
  axes.set_title(device, fontsize=9)
  axes.legend(frameon=False, fontsize=8)
  save(figure, path)


def save(figure: Any, path: Path) -> None:
  """Writes a figure; equal figures are equal files."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with plt.rc_context({"svg.hashsalt": "peftjax", "svg.fonttype": "none"}):
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
  plt.close(figure)


def milli(seconds: float) -> str:
  """Milliseconds with as many digits as mean something."""
  return f"{1e3 * seconds:.2f}" if seconds < 0.01 else f"{1e3 * seconds:.1f}"


INTRODUCTION = """# Performance

How fast a step is, against what people would pick instead, and where its time goes. This page is written by
`python -m experiments.benchmarks.report` from recorded figures; every table has the command that measures it anew, on
whatever device there is. Times are of accelerators alone: on a CPU, which other work shares, only ratios count.
"""
KNOWN = """
What changed after these figures, and was not measured on the device again:

- T5's relative bias is a product now. Its lookup's gradient added [512, 512] numbers to 32 rows in bfloat16, which is
  the suspected cause of the T5-large step's time.
- The check of many runs at once failed because cuDNN's rule for `jax.vmap` takes no mask that all heads share; such
  programs now mask without it.
- Embedded rows are chosen before they are converted, so that their gradients add up in the table's dtype.

Tried without a figure: a scan over the layers that is unrolled whole would save the copies between stacks that the
profiles show. Its compilation, beside the other checks, did not end within three minutes, so the layers stay a loop.
The share of a whole `train` in which the device waits for the host was not measured: the profiles' share is of steps
dispatched one after the other, without a loader. Neither were ViT-L/16 and Whisper-medium, nor what `train` does by
default, whose backward pass recomputes all but the products with weights and the fused kernel (`peftjax-minimal`).
"""
COMMANDS_TEXT = """
## Commands

    python -m experiments.benchmarks.training_steps --size=small   # a CPU: six models
    python -m experiments.benchmarks.training_steps --size=large   # one accelerator of 80 GB
    python -m experiments.benchmarks.start_up
    python -m experiments.benchmarks.attention
    python -m experiments.benchmarks.methods --shape=bert-base
    python -m experiments.benchmarks.sweeps --precision=bfloat16
    python -m experiments.benchmarks.waiting
    python -m experiments.benchmarks.profile_step --shape=llama-1b --method=lora
    python -m experiments.accelerator.smoke
    experiments/accelerator/run_all.sh OUT environment smoke prepare steps attention profile methods sweeps waiting

A CPU's figures need a machine without other work.
"""


if __name__ == "__main__":
  main()
