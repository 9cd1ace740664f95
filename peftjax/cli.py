"""The verbs. Each takes --config=FILE[:arg] and --config.a.b=value, and --json for one JSON object on stdout.

Exit codes: 0 success, 1 a run failed, 2 a user's mistake or a fault of the machine, said in one line on stderr, 130
ended by Ctrl-C.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from rich.console import Console

from peftjax.errors import UserError, nearest

Result = dict[str, Any]
TRUST = {"trust": "module:Name, or several divided by commas: own code that the run names, and that may be imported"}
INTERRUPTED = 130  # 128 + SIGINT, as shells say it
SAMPLING_FLAGS = (
  "max_new_tokens",
  "temperature",
  "top_k",
  "top_p",
  "repetition_penalty",
  "no_repeat_ngram_size",
  "min_new_tokens",
  "num_beams",
  "length_penalty",
)


@dataclasses.dataclass(frozen=True)
class Verb:
  """A verb: what it does, the function that does it, its own flags and switches (name -> help), the required ones."""

  help: str
  run: Callable[[argparse.Namespace, list[str]], int]
  flags: dict[str, str] = dataclasses.field(default_factory=dict)
  required: tuple[str, ...] = ()
  switches: dict[str, str] = dataclasses.field(default_factory=dict)


class _Parser(argparse.ArgumentParser):
  """A parser whose errors are one line."""

  def error(self, message: str) -> NoReturn:
    raise UserError(f"{self.prog}: {message}")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one verb and returns the exit code."""
  arguments = list(sys.argv[1:] if argv is None else argv)
  logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
  try:
    return _dispatch(arguments)
  except UserError as error:
    print(f"peftjax: {error}", file=sys.stderr)
    return 2
  except BrokenPipeError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left; nothing more to say
    return 0
  except OSError as error:
    where = f": {error.filename}" if error.filename else ""
    print(f"peftjax: {error.strerror or error}{where}", file=sys.stderr)
    return 2
  except MemoryError as error:
    print(f"peftjax: {' '.join(str(error).split()) or 'out of memory'}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print("peftjax: interrupted", file=sys.stderr)
    return INTERRUPTED


def _dispatch(arguments: list[str]) -> int:
  if not arguments or arguments[0] in ("-h", "--help"):
    print(_overview())
    return 0
  if arguments[0] == "--version":
    from peftjax import __version__

    print(f"peftjax {__version__}")
    return 0
  name, *rest = arguments
  if name not in VERBS:
    raise UserError(f"no verb {name!r}; {nearest(name, VERBS)}")
  verb = VERBS[name]
  parser = _Parser(prog=f"peftjax {name}", description=verb.help, allow_abbrev=False)
  parser.add_argument("--config", default="", metavar="FILE[:arg]", help="a config file; the default config without")
  parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
  for flag, text in verb.flags.items():
    parser.add_argument(f"--{flag}", default="", required=flag in verb.required, help=text)
  for switch, text in verb.switches.items():
    parser.add_argument(f"--{switch}", action="store_true", help=text)
  overrides = [one.removeprefix("--config.") for one in rest if one.startswith("--config.")]
  parsed = parser.parse_args([one for one in rest if not one.startswith("--config.")])
  return verb.run(parsed, overrides)


def _overview() -> str:
  lines = ["usage: peftjax VERB [--config=FILE[:arg]] [--config.a.b=value ...] [--json] ...", ""]
  lines += [f"  {name:<10} {verb.help}" for name, verb in VERBS.items()]
  return "\n".join([*lines, "", "peftjax VERB --help tells a verb's flags."])


def _config(parsed: argparse.Namespace, overrides: list[str]) -> Any:
  from peftjax import config  # imported late: `--help` and mistakes in verbs answer at once

  return config.load(parsed.config, overrides)


def _trusted(parsed: argparse.Namespace) -> tuple[str, ...]:
  """The own code that the user names again."""
  return tuple(one for one in parsed.trust.split(",") if one)


def _finish(parsed: argparse.Namespace, result: Result, show: Callable[[Console], None]) -> int:
  if parsed.json:
    print(json.dumps(result, allow_nan=False, default=str))
  else:
    show(Console(soft_wrap=True, width=None if sys.stdout.isatty() else 200))
  return 0


def _train(parsed: argparse.Namespace, overrides: list[str]) -> int:
  from peftjax.parallel import hosts
  from peftjax.train import loop, sweep

  config = _config(parsed, overrides)
  hosts.start(config)
  if config.sweep:
    result = sweep.train_sweep(config, parsed.workdir)
    return _finish(parsed, result, lambda console: sweep.show(result, console))
  summary = loop.train(config, parsed.workdir)
  if not hosts.is_first():
    return 0
  return _finish(parsed, summary, lambda console: console.print_json(json.dumps(summary, default=str)))


def _eval(parsed: argparse.Namespace, overrides: list[str]) -> int:
  from peftjax.config import default
  from peftjax.parallel import hosts
  from peftjax.train import finished

  if overrides or parsed.config:
    raise UserError("peftjax eval: the config is the run's own, in its workdir; it takes no --config")
  hosts.start(default())  # the environment says where the others are: a run's folder names no machine to call
  result = finished.evaluate_run(parsed.workdir, trust=_trusted(parsed))
  if not hosts.is_first():
    return 0
  return _finish(parsed, result, lambda console: console.print_json(json.dumps(result, default=str)))


def _inspect(parsed: argparse.Namespace, overrides: list[str]) -> int:
  from peftjax.train import inspection

  result = inspection.inspect(_config(parsed, overrides))
  return _finish(parsed, result, lambda console: inspection.show(result, console))


def _plan(parsed: argparse.Namespace, overrides: list[str]) -> int:
  from peftjax.train import plan

  result = plan.plan(_config(parsed, overrides), parsed.topology, parsed.search, parsed.arguments)
  return _finish(parsed, result, lambda console: plan.show(result, console))


def _compare(parsed: argparse.Namespace, overrides: list[str]) -> int:
  from peftjax.compare import study

  return study.main(_config(parsed, overrides), parsed.workdir, as_json=parsed.json)


def _guide(parsed: argparse.Namespace, overrides: list[str]) -> int:
  from peftjax.guide import recommend

  result = recommend.recommend(_config(parsed, overrides))
  return _finish(parsed, result, lambda console: recommend.show(result, console))


def _export(parsed: argparse.Namespace, overrides: list[str]) -> int:
  from peftjax.train import finished

  if overrides or parsed.config:
    raise UserError("peftjax export: the config is the run's own, in its workdir; it takes no --config")
  result = finished.export(
    parsed.workdir, parsed.format, parsed.out, parsed.overwrite, _trusted(parsed), not parsed.unchecked
  )
  return _finish(parsed, result, lambda console: console.print("\n".join(_exported(result))))


def _exported(result: Mapping[str, Any]) -> list[str]:
  lines = [f"wrote {result['out']} ({result['bytes']:,} bytes)"]
  if found := result["merging"]:
    kept, least = (f"{100 * (1 - found[name]):.3g} %" for name in ("mean_error", "largest_error"))
    lines.append(
      f"merging kept {kept} of the change, rounding took the rest; least at {found['largest_error_at']}: {least}"
    )
  return lines


def _generate(parsed: argparse.Namespace, overrides: list[str]) -> int:
  from peftjax import text_generation

  if overrides or parsed.config:
    raise UserError("peftjax generate: the model and its adapter say everything; it takes no --config")
  show = None if parsed.json else lambda piece: print(piece, end="", flush=True)
  result = text_generation.from_flags(parsed, show)
  return _finish(parsed, result, lambda console: console.print())


def _transcribe(parsed: argparse.Namespace, overrides: list[str]) -> int:
  from peftjax import transcription

  if overrides or parsed.config:
    raise UserError("peftjax transcribe: the model and its adapter say everything; it takes no --config")
  show = None if parsed.json else lambda piece: print(piece, end="", flush=True)
  result = transcription.from_flags(parsed, show)
  return _finish(parsed, result, lambda console: console.print())


def _sample(parsed: argparse.Namespace, overrides: list[str]) -> int:
  from peftjax import sampling_verb
  from peftjax.train import finished

  if overrides or parsed.config:
    raise UserError("peftjax sample: the pipeline and its adapters, or the run, say everything; it takes no --config")
  if bool(parsed.model) == bool(parsed.workdir):
    raise UserError("peftjax sample: expected one of --model and --workdir")
  trained = None
  if parsed.workdir:
    config, _, model = finished.load_model(parsed.workdir, _trusted(parsed))
    trained = model, str(config.model.path)
  result = sampling_verb.from_flags(parsed, trained)
  return _finish(
    parsed, result, lambda console: console.print(f"wrote {len(result['files'])} pictures to {parsed.out}")
  )


VERBS: dict[str, Verb] = {
  "train": Verb("train one method; resumes by itself", _train, {"workdir": "folder of the run"}, ("workdir",)),
  "eval": Verb("evaluate a finished run", _eval, {"workdir": "folder of the run", **TRUST}, ("workdir",)),
  "inspect": Verb("what trains and what does not, from shapes alone", _inspect),
  "plan": Verb(
    "what the train step needs on every device, compiled ahead of time",
    _plan,
    {"topology": "a slice such as v5e:4x4; this machine without"},
    switches={
      "search": "if it does not fit, try what would make it fit",
      "arguments": "leaves, optimizer and batch alone, from shapes, in seconds; nothing is compiled",
    },
  ),
  "compare": Verb("train and compare methods", _compare, {"workdir": "folder of the study"}, ("workdir",)),
  "guide": Verb("which method, with the evidence", _guide),
  "export": Verb(
    "write a run in Hugging Face's formats",
    _export,
    {
      "workdir": "folder of the run",
      "format": "peft, merged, diffusers, or embeds of learned tokens",
      "out": "folder to write",
      **TRUST,
    },
    ("workdir", "format", "out"),
    {
      "overwrite": "replace files of the same names that were not written by peftjax",
      "unchecked": "merge without comparing each module's outputs before and after",
    },
  ),
  "generate": Verb(
    "text from a language model",
    _generate,
    {
      "model": "a Hugging Face folder, a GGUF file or packaged:NAME",
      "adapter": "a PEFT adapter folder",
      "prompt": "the text to go on from",
      "chat": "yes: the prompt is a user's message, put through the model's chat template",
      "system": "a system message, with --chat=yes",
      "stop": "a text that ends the answer",
      "seed": "for sampling; default 0",
      **{name: "see peftjax.models.sampling.Sampling" for name in SAMPLING_FLAGS},
    },
    ("model", "prompt"),
    {"other_base": "take the adapter though it was trained on other weights"},
  ),
  "transcribe": Verb(
    "what is said in a recording",
    _transcribe,
    {
      "model": "a Hugging Face folder of a Whisper, or packaged:NAME",
      "adapter": "a PEFT adapter folder",
      "audio": "a WAV or FLAC file of any length",
      "language": "that is spoken, such as en, of multilingual models",
      "num_beams": "of beam search; default 1",
      "max_new_tokens": "for 30 seconds; default: as many as the model has positions for",
    },
    ("model", "audio"),
    {
      "other_base": "take the adapter though it was trained on other weights",
      "translate": "into English",
    },
  ),
  "sample": Verb(
    "pictures from a text-to-image pipeline",
    _sample,
    {
      "model": "a pipeline's folder, with model_index.json",
      "workdir": "folder of a run, in place of --model and --adapter",
      "adapter": "an adapter's folder, or FOLDER=WEIGHT; several, divided by commas, act at once",
      "prompt": "what to show; several prompts are divided by |",
      "negative": "what guidance leads away from",
      "count": "pictures of each prompt; default 1",
      "seed": "of the first picture of each prompt, the next ones count on; default 0",
      "steps": "of the sampler; default 50",
      "guidance": "scale of the guidance, up to 1 for none; default 7.5",
      "sampler": "ddpm, ddim or euler; the pipeline's own without",
      "size": "pixels of a side; what the denoiser is made for without",
      "batch": "pictures made at once; default 4",
      "out": "folder to write: pictures, metadata.csv and sheet.png",
      **TRUST,
    },
    ("prompt", "out"),
    {"before": "the sheet shows the base model's pictures above", "overwrite": "replace files of the same names"},
  ),
}
