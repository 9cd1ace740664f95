#!/usr/bin/env bash
# The same on a GPU host that ssh reaches: tpu_scripts/gpu_host.sh VERB --host=user@machine [--dry_run] [-- flags of train]
# VERB: setup (copy and install), run (in tmux, with a log), watch (until it ends; restarts it), fetch.
HOST="${HOST:-}"
verb="${1:-}"
shift || true
rest=()
for one in "$@"; do
  case "$one" in
    --host=*) HOST="${one#*=}" ;;
    *) rest+=("$one") ;;
  esac
done
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
read_flags "${rest[@]}"
[[ -n "$HOST" ]] || fail "--host=user@machine is missing"
[[ "$WORKDIR" != bucket/* ]] || WORKDIR="runs/$NAME"

setup() {
  run rsync -az --delete --exclude=.git --exclude=.venv --exclude=runs "$SOURCE/" "$HOST:peftjax/"
  local jax
  jax="$(sed -n 's/^jax==//p' "$SOURCE/requirements.lock")"
  insist ssh "$HOST" "set -e; cd peftjax; test -d .venv || python3 -m venv .venv;
    .venv/bin/pip install --quiet -r requirements.lock; .venv/bin/pip install --quiet --no-deps -e .;
    .venv/bin/pip install --quiet 'jax[cuda12]==$jax'"
}

start() {
  local train inner
  train="cd peftjax && .venv/bin/python -m peftjax train --workdir=\$HOME/$WORKDIR"
  if ((${#REST[@]})); then train+="$(printf ' %q' "${REST[@]}")"; fi
  inner="mkdir -p ~/peftjax-run; rm -f ~/peftjax-run/exit_code; ($train) >> ~/peftjax-run/log 2>&1;"
  inner+=' echo $? > ~/peftjax-run/exit_code'
  insist ssh "$HOST" "tmux kill-session -t peftjax 2>/dev/null; tmux new-session -d -s peftjax $(printf '%q' "$inner")"
}

watch() {
  local code
  while true; do
    code="$(run ssh "$HOST" 'cat peftjax-run/exit_code 2>/dev/null || echo running' || echo unreachable)"
    if [[ -n "$DRY_RUN" ]]; then
      say "$code"
      return
    fi
    case "$code" in
      0) return ;;
      2) fail "training ended with a mistake; see ~/peftjax-run/log on $HOST" ;;
      running | unreachable) sleep "$WAIT" ;;
      *) say "training ended with $code: again from the last checkpoint"; start ;;
    esac
  done
}

case "$verb" in
  setup) setup ;;
  run) start ;;
  watch) watch ;;
  fetch) run mkdir -p "$OUT"; run rsync -az "$HOST:$WORKDIR/" "$OUT/" ;;
  *) fail "no verb '$verb'; expected setup, run, watch or fetch" ;;
esac
