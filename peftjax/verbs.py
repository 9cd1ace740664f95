"""What each verb of the command line is called, takes and reads; `cli` runs them."""

from __future__ import annotations

import dataclasses

TRUST = {
  "trust": "module:Name, or a folder of Python files, or several divided by commas: own code that the run names, and "
  "that may be imported"
}
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
  """A verb.

  Attributes:
    help: what it does.
    flags, switches: its own, name -> help; `required` and `repeated` are among the flags.
    words: what stands without a dash, name -> help; those in `required` may not be left out.
    sections: of the config that it reads, in the order of use; () where it takes none.
    examples: commands, without "peftjax".
  """

  help: str
  flags: dict[str, str] = dataclasses.field(default_factory=dict)
  required: tuple[str, ...] = ()
  switches: dict[str, str] = dataclasses.field(default_factory=dict)
  repeated: tuple[str, ...] = ()
  words: dict[str, str] = dataclasses.field(default_factory=dict)
  sections: tuple[str, ...] = ()
  examples: tuple[str, ...] = ()


RUN = {"workdir": "folder of the run"}
WHICH = {"checkpoint": "last or best; without, what the run's train.result says"}
OF_A_RUN = ("model", "method", "task", "data", "input", "optim", "train", "evaluators", "writers", "mesh", "hosts")
KINDS = ("methods", "models", "tasks", "inputs", "data", "evaluators", "writers", "dimensions")

VERBS: dict[str, Verb] = {
  "train": Verb(
    "train one method; resumes by itself",
    RUN,
    ("workdir",),
    sections=(*OF_A_RUN, "seed", "sweep"),
    examples=(
      "train --workdir=runs/lora --config.method.name=lora --config.method.rank=8",
      "train --workdir=runs/own --config.data.name=csv:reviews.csv --config.model.path=path/to/bert",
      'train --workdir=runs/grid --config.sweep.seed="(0,1,2)"',
    ),
  ),
  "eval": Verb(
    "evaluate a finished run",
    {**RUN, **WHICH, **TRUST},
    ("workdir",),
    examples=("eval --workdir=runs/lora", "eval --workdir=runs/lora --checkpoint=best"),
  ),
  "predict": Verb(
    "what a finished run says of new examples, one JSON object a line",
    {
      **RUN,
      "text": "a text",
      "file": ".txt with a text on each line, .jsonl, .csv or another table, a picture, or a folder of pictures",
      **WHICH,
      **TRUST,
    },
    ("workdir",),
    repeated=("text", "file"),
    examples=(
      'predict --workdir=runs/lora --text="A film of rare warmth."',
      "predict --workdir=runs/own --file=new.csv",
      "predict --workdir=runs/images --file=holiday/",
    ),
  ),
  "inspect": Verb(
    "what trains and what does not, from shapes alone",
    sections=("model", "method", "task", "data"),
    examples=("inspect --config.method.name=lora --config.method.targets=\"('query','value')\"",),
  ),
  "plan": Verb(
    "what the train step needs on every device, compiled ahead of time",
    {"topology": "a slice such as v5e:4x4, a card such as t4 or h100-80gb:8; this machine without"},
    switches={
      "search": "if it does not fit, try what would make it fit",
      "arguments": "leaves, optimizer and batch alone, from shapes, in seconds; nothing is compiled",
    },
    sections=(*OF_A_RUN[:-3], "mesh"),
    examples=("plan --topology=v5e:4x4 --config.model.path=llama --config.mesh.data=1 --config.mesh.fsdp=-1",),
  ),
  "range": Verb(
    "a learning rate range test: the loss along a rising rate, and the rate it suggests",
    {
      "workdir": "folder to write: range.json, range.png",
      "from": "the first rate; default 1e-6",
      "to": "the last one; default 1",
      "updates": "between them; default 100",
    },
    ("workdir",),
    sections=(*OF_A_RUN[:-3], "mesh", "hosts"),
    examples=(
      "range --workdir=runs/range --config.method.name=lora",
      "range --workdir=runs/range --from=1e-5 --to=0.1",
    ),
  ),
  "compare": Verb(
    "train and compare methods",
    {"workdir": "folder of the study"},
    ("workdir",),
    sections=("compare", *OF_A_RUN),
    examples=("compare --workdir=runs/study --config=configs/demo.py",),
  ),
  "guide": Verb(
    "which method, with the evidence",
    sections=("guide", "model"),
    examples=("guide --config.guide.examples=500 --config.guide.tasks=20 --config.guide.latency=same",),
  ),
  "export": Verb(
    "write a run in Hugging Face's formats",
    {
      **RUN,
      "format": "peft, merged, diffusers, or embeds of learned tokens",
      "out": "folder to write",
      **WHICH,
      **TRUST,
    },
    ("workdir", "format", "out"),
    {
      "overwrite": "replace files of the same names that were not written by peftjax",
      "unchecked": "merge without comparing each module's outputs before and after",
    },
    examples=("export --workdir=runs/lora --format=peft --out=adapter",),
  ),
  "generate": Verb(
    "text from a language model",
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
    examples=('generate --model=packaged:smollm2-135m-instruct --chat=yes --prompt="Name three rivers."',),
  ),
  "serve": Verb(
    "a language model and adapters for it behind OpenAI's protocol, and a page to chat with two of them",
    {
      "model": "a Hugging Face folder, a GGUF file or packaged:NAME",
      "adapter": "a PEFT adapter folder, or NAME=FOLDER",
      "name": "of the base in requests; default its folder's",
      "host": "address to listen at; default 127.0.0.1, this machine alone",
      "port": "default 8000; 0: a free one",
      "batch": "answers written at once; default 16",
      "waiting": "requests that may wait; default 64",
      "max_tokens": "of an answer; default 1024",
      "max_prompt": "tokens of a prompt; default as many as the model has positions for",
      "timeout": "seconds from a request to the end of its answer; default 120",
    },
    ("model",),
    {"other_base": "take adapters though they were trained on other weights"},
    ("adapter",),
    examples=("serve --model=packaged:smollm2-135m-instruct --adapter=formal=runs/formal/adapter",),
  ),
  "runs": Verb(
    "the runs and studies below a folder, with their scores",
    {
      "filter": "FIELD=GLOB, such as method=lora, or a glob of names",
      "plot": "a .png, .svg or .pdf to draw their curves in",
    },
    ("folder",),
    words={"folder": "the folder"},
    examples=("runs runs", "runs runs --filter=method=lora --plot=curves.png"),
  ),
  "list": Verb(
    f"what there is: {', '.join(KINDS)}",
    required=("kind",),
    words={"kind": "one of them", "name": "of one: what it is, and its own fields"},
    examples=("list methods", "list methods lora", "list models --json"),
  ),
  "config": Verb(
    "every field of the config: type, default, meaning",
    words={"field": "a section, a field, what another trainer calls it, or a word in its meaning"},
    examples=("config", "config train", "config lora_alpha", "config --config=configs/demo.py   # a config, whole"),
  ),
  "completion": Verb(
    "a script that completes verbs, flags and fields in a shell",
    required=("shell",),
    words={"shell": "bash or zsh"},
    examples=("completion bash > ~/.local/share/bash-completion/completions/peftjax",),
  ),
  "transcribe": Verb(
    "what is said in a recording",
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
    examples=("transcribe --model=packaged:whisper-tiny.en --audio=talk.wav",),
  ),
  "sample": Verb(
    "pictures from a text-to-image pipeline",
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
      **WHICH,
      **TRUST,
    },
    ("prompt", "out"),
    {"before": "the sheet shows the base model's pictures above", "overwrite": "replace files of the same names"},
    examples=('sample --workdir=runs/dog --prompt="a photo of sks dog in the snow" --count=4 --out=pictures',),
  ),
}
