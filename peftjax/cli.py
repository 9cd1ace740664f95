"""The verbs. Each takes --config=FILE[:arg] and --config.a.b=value, and --json for one JSON object on stdout.

Exit codes: 0 success, 1 a run failed, 2 a user's mistake or a fault of the machine, said in one line on stderr, 130
ended by Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from rich.console import Console

from peftjax import huge_pages
from peftjax.errors import UserError, nearest
from peftjax.no_tpu import without_noise
from peftjax.own_code import failures_as_one_line
from peftjax.verbs import KINDS, VERBS, Verb

Result = dict[str, Any]
TRAINING = ("train", "range", "compare")  # the verbs whose steps ask for large arrays again and again
INTERRUPTED = 130  # 128 + SIGINT, as shells say it


class _Parser(argparse.ArgumentParser):
  """A parser whose errors are one line."""

  def error(self, message: str) -> NoReturn:
    raise UserError(f"{self.prog}: {message}")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one verb and returns the exit code."""
  arguments = list(sys.argv[1:] if argv is None else argv)
  logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
  without_noise()
  if argv is None and arguments and arguments[0] in TRAINING:
    huge_pages.start_again()
  try:
    with failures_as_one_line():
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
  parser = _Parser(
    prog=f"peftjax {name}",
    description=verb.help,
    epilog=_epilog(verb) if {"-h", "--help"} & set(rest) else None,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument("--config", default="", metavar="FILE[:arg]", help="a config file; the default config without")
  parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
  for word, text in verb.words.items():
    parser.add_argument(word, nargs=None if word in verb.required else "?", default="", help=text)
  for flag, text in verb.flags.items():
    if flag in verb.repeated:
      parser.add_argument(f"--{flag}", action="append", default=[], help=f"{text}; may be given several times")
    else:
      parser.add_argument(f"--{flag}", default="", required=flag in verb.required, help=text)
  for switch, text in verb.switches.items():
    parser.add_argument(f"--{switch}", action="store_true", help=text)
  overrides = [one.removeprefix("--config.") for one in rest if one.startswith("--config.")]
  parsed = parser.parse_args([one for one in rest if not one.startswith("--config.")])
  for one in verb.required:
    if not getattr(parsed, one):  # as a shell's variable without a value gives it
      what = one if one in verb.words else f"--{one}"
      raise UserError(f"{what} is empty; expected {(verb.words | verb.flags)[one]}")
  return _RUN[name](parsed, overrides)


def _epilog(verb: Verb) -> str:
  """The fields of the config that a verb reads, by section, and examples."""
  from peftjax.config.describing import sections

  lines, fields = [], sections()
  if verb.sections:
    lines.append("--config.SECTION.FIELD=value, of the sections that it reads (peftjax config SECTION tells more):")
    for name in verb.sections:
      listed = textwrap.wrap(", ".join(fields[name]), 100)
      lines += [f"  {name + ':':<11}{listed[0]}", *(f"{'':<13}{one}" for one in listed[1:])]
  if verb.examples:
    lines += ["", "examples:", *(f"  peftjax {one}" for one in verb.examples)]
  return "\n".join(lines)


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
  from peftjax.train import finished_table, loop, sweep

  config = _config(parsed, overrides)
  hosts.start(config)
  if config.sweep:
    result = sweep.train_sweep(config, parsed.workdir)
    return _finish(parsed, result, lambda console: sweep.show(result, console))
  summary = loop.train(config, parsed.workdir)
  if not hosts.is_first():
    return 0
  return _finish(parsed, summary, lambda console: finished_table.show(summary, parsed.workdir, console))


def _eval(parsed: argparse.Namespace, overrides: list[str]) -> int:
  from peftjax.config import default
  from peftjax.parallel import hosts
  from peftjax.train import finished, finished_table

  _no_config(parsed, overrides, "eval", "the config is the run's own, in its workdir")
  hosts.start(default())  # the environment says where the others are: a run's folder names no machine to call
  result = finished.evaluate_run(parsed.workdir, trust=_trusted(parsed), checkpoint=parsed.checkpoint)
  if not hosts.is_first():
    return 0
  return _finish(parsed, result, lambda console: finished_table.show_scores(result["metrics"], console))


def _predict(parsed: argparse.Namespace, overrides: list[str]) -> int:
  from peftjax import predicting

  _no_config(parsed, overrides, "predict", "the config is the run's own, in its workdir")
  for row in predicting.predict(parsed.workdir, parsed.text, parsed.file, _trusted(parsed), parsed.checkpoint):
    print(json.dumps(row, ensure_ascii=False, allow_nan=False))
  return 0


def _list(parsed: argparse.Namespace, overrides: list[str]) -> int:
  from peftjax import listing

  _no_config(parsed, overrides, "list", "what there is does not depend on a config")
  if parsed.name:
    one = listing.entry(parsed.kind, parsed.name)
    return _finish(parsed, one, lambda console: listing.show_entry(one, console))
  result: Result = dict(listing.entries(parsed.kind))
  return _finish(parsed, result, lambda console: listing.show(result, console))


def _runs(parsed: argparse.Namespace, overrides: list[str]) -> int:
  from peftjax.compare import overview

  _no_config(parsed, overrides, "runs", "it reads what runs have written")
  rows = overview.found(parsed.folder, parsed.filter)
  result: Result = {"runs": rows}
  if parsed.plot:
    result["plot"] = str(overview.plot(rows, parsed.folder, parsed.plot))
  return _finish(parsed, result, lambda console: overview.show(rows, console))


def _fields(parsed: argparse.Namespace, overrides: list[str]) -> int:
  from peftjax.config import ALIASES, FIELDS, describing

  if parsed.config or overrides:  # what a config is, once everything is applied
    config = _config(parsed, overrides).to_dict()
    return _finish(parsed, config, lambda console: console.print_json(json.dumps(config, default=str)))
  name = ALIASES.get(parsed.field, parsed.field)
  if name.startswith("method.") and name not in FIELDS:
    from peftjax import listing

    result = listing.methods_with(name.removeprefix("method."))
    return _finish(parsed, result, lambda console: listing.show(result, console))
  rows = describing.described(parsed.field)
  return _finish(parsed, {row["name"]: row for row in rows}, lambda console: describing.show(rows, console))


def _completion(parsed: argparse.Namespace, overrides: list[str]) -> int:
  from peftjax import completion
  from peftjax.config import FIELDS

  _no_config(parsed, overrides, "completion", "it completes the names of fields")
  verbs = {
    name: ["--json", "--help", *(["--config="] if verb.sections else []), *(f"--{one}=" for one in verb.flags),
           *(f"--{one}" for one in verb.switches), *(KINDS if name == "list" else ())]
    for name, verb in VERBS.items()
  }  # fmt: skip
  print(completion.script(parsed.shell, verbs, tuple(FIELDS)), end="")
  return 0


def _no_config(parsed: argparse.Namespace, overrides: list[str], verb: str, why: str) -> None:
  if overrides or parsed.config:
    raise UserError(f"peftjax {verb}: {why}; it takes no --config")


def _inspect(parsed: argparse.Namespace, overrides: list[str]) -> int:
  from peftjax.train import inspection

  result = inspection.inspect(_config(parsed, overrides))
  return _finish(parsed, result, lambda console: inspection.show(result, console))


def _plan(parsed: argparse.Namespace, overrides: list[str]) -> int:
  from peftjax.train import plan

  result = plan.plan(_config(parsed, overrides), parsed.topology, parsed.search, parsed.arguments)
  return _finish(parsed, result, lambda console: plan.show(result, console))


def _range(parsed: argparse.Namespace, overrides: list[str]) -> int:
  from peftjax.kinds import whole_of_text
  from peftjax.parallel import hosts
  from peftjax.train import rate_range

  ends = []
  for flag, default in (("from", "1e-6"), ("to", "1")):
    text = getattr(parsed, flag) or default
    try:
      ends.append(float(text))
    except ValueError:
      raise UserError(f"peftjax range --{flag}={text}: expected a number") from None
  updates = whole_of_text(parsed.updates or "100", 1, 2**31 - 1)
  if updates is None:
    raise UserError(f"peftjax range --updates={parsed.updates}: expected a whole number of at least 1")
  config = _config(parsed, overrides)
  hosts.start(config)
  result = rate_range.find(config, parsed.workdir, ends[0], ends[1], updates)
  if not hosts.is_first():
    return 0
  return _finish(parsed, result, lambda console: rate_range.show(result, parsed.workdir, console))


def _compare(parsed: argparse.Namespace, overrides: list[str]) -> int:
  from peftjax.compare import study

  return study.main(_config(parsed, overrides), parsed.workdir, as_json=parsed.json)


def _guide(parsed: argparse.Namespace, overrides: list[str]) -> int:
  from peftjax.guide import recommend

  words = [f"--config={parsed.config}"] * bool(parsed.config) + [f"--config.{one}" for one in overrides]
  result = recommend.recommend(_config(parsed, overrides), words)
  return _finish(parsed, result, lambda console: recommend.show(result, console))


def _export(parsed: argparse.Namespace, overrides: list[str]) -> int:
  from peftjax.train import finished

  _no_config(parsed, overrides, "export", "the config is the run's own, in its workdir")
  result = finished.export(
    parsed.workdir,
    parsed.format,
    parsed.out,
    parsed.overwrite,
    _trusted(parsed),
    not parsed.unchecked,
    parsed.checkpoint,
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

  _no_config(parsed, overrides, "generate", "the model and its adapter say everything")
  show = None if parsed.json else lambda piece: print(piece, end="", flush=True)
  result = text_generation.from_flags(parsed, show)
  return _finish(parsed, result, lambda console: console.print())


def _serve(parsed: argparse.Namespace, overrides: list[str]) -> int:
  from peftjax.serve import running

  _no_config(parsed, overrides, "serve", "the model and its adapters say everything")
  return running.run(parsed)


def _transcribe(parsed: argparse.Namespace, overrides: list[str]) -> int:
  from peftjax import transcription

  _no_config(parsed, overrides, "transcribe", "the model and its adapter say everything")
  show = None if parsed.json else lambda piece: print(piece, end="", flush=True)
  result = transcription.from_flags(parsed, show)
  return _finish(parsed, result, lambda console: console.print())


def _sample(parsed: argparse.Namespace, overrides: list[str]) -> int:
  from peftjax import sampling_verb
  from peftjax.train import finished

  _no_config(parsed, overrides, "sample", "the pipeline and its adapters, or the run, say everything")
  if bool(parsed.model) == bool(parsed.workdir):
    raise UserError("peftjax sample: expected one of --model and --workdir")
  trained = None
  if parsed.workdir:
    config, _, model = finished.load_model(parsed.workdir, _trusted(parsed), parsed.checkpoint)
    trained = model, str(config.model.path)
  result = sampling_verb.from_flags(parsed, trained)
  return _finish(
    parsed, result, lambda console: console.print(f"wrote {len(result['files'])} pictures to {parsed.out}")
  )


_RUN: dict[str, Callable[[argparse.Namespace, list[str]], int]] = {
  "train": _train,
  "eval": _eval,
  "predict": _predict,
  "inspect": _inspect,
  "plan": _plan,
  "range": _range,
  "compare": _compare,
  "guide": _guide,
  "export": _export,
  "generate": _generate,
  "serve": _serve,
  "runs": _runs,
  "list": _list,
  "config": _fields,
  "completion": _completion,
  "transcribe": _transcribe,
  "sample": _sample,
}
