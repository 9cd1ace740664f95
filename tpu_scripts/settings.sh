# shellcheck shell=bash
# Read by the other scripts: their flags, and how a command is run or, with --dry_run, printed.
# Every flag may also be set as a variable of the same name in capitals, such as ZONE=us-central1-a.
set -euo pipefail

NAME="${NAME:-peftjax}"          # of the TPU
ZONE="${ZONE:-}"                 # such as us-west4-a
PROJECT="${PROJECT:-}"           # gcloud's own default if empty
TYPE="${TYPE:-v5litepod-16}"     # accelerator type; peftjax plan --topology=v5e:4x4 is this one
VERSION="${VERSION:-v2-alpha-tpuv5-lite}" # software of the TPU VM
MODE="${MODE:-ondemand}"         # ondemand, spot, queued or queued-spot
BUCKET="${BUCKET:-}"             # Cloud Storage bucket mounted on every worker as ~/bucket: runs that several hosts share
SOURCE="${SOURCE:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}" # the checkout to copy
WORKDIR="${WORKDIR:-bucket/runs/$NAME}" # of the run, on the workers, from their home folder
OUT="${OUT:-runs/$NAME}"         # where results are fetched to
WAIT="${WAIT:-60}"               # seconds between two looks
TRIES="${TRIES:-5}"              # of a command that the cloud refuses for the moment
DRY_RUN="${DRY_RUN:-}"
REST=()                          # what follows --: flags of `peftjax train`

say() { printf '%s\n' "$*" >&2; }

fail() {
  say "$(basename "$0"): $*"
  exit 2
}

read_flags() {
  while (($#)); do
    case "$1" in
      --name=*) NAME="${1#*=}"; WORKDIR="bucket/runs/$NAME"; OUT="runs/$NAME" ;;
      --zone=*) ZONE="${1#*=}" ;;
      --project=*) PROJECT="${1#*=}" ;;
      --type=*) TYPE="${1#*=}" ;;
      --version=*) VERSION="${1#*=}" ;;
      --mode=*) MODE="${1#*=}" ;;
      --bucket=*) BUCKET="${1#*=}" ;;
      --source=*) SOURCE="${1#*=}" ;;
      --workdir=*) WORKDIR="${1#*=}" ;;
      --out=*) OUT="${1#*=}" ;;
      --wait=*) WAIT="${1#*=}" ;;
      --tries=*) TRIES="${1#*=}" ;;
      --dry_run) DRY_RUN=1 ;;
      --) shift; REST=("$@"); return ;;
      *) fail "no flag $1; see settings.sh" ;;
    esac
    shift
  done
}

need_zone() { [[ -n "$ZONE" ]] || fail "--zone=... is missing, such as --zone=us-west4-a"; }

# Runs a command, or prints it.
run() {
  if [[ -n "$DRY_RUN" ]]; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

# Runs a command up to $TRIES times, $WAIT seconds apart: the cloud refuses what it grants a minute later.
insist() {
  local try
  for ((try = 1; ; try++)); do
    run "$@" && return
    ((try < TRIES)) || fail "gave up after $TRIES tries: $*"
    say "try $try of $TRIES failed; again in $WAIT s"
    sleep "$WAIT"
  done
}

where() {
  printf '%s\n' "--zone=$ZONE"
  if [[ -n "$PROJECT" ]]; then printf '%s\n' "--project=$PROJECT"; fi
}

tpu() {
  local -a place
  mapfile -t place < <(where)
  run gcloud compute tpus tpu-vm "$@" "${place[@]}" --quiet
}

insist_tpu() {
  local -a place
  mapfile -t place < <(where)
  insist gcloud compute tpus tpu-vm "$@" "${place[@]}" --quiet
}

queued() {
  local -a place
  mapfile -t place < <(where)
  run gcloud compute tpus queued-resources "$@" "${place[@]}" --quiet
}

# The TPU's state, such as READY, PREEMPTED or TERMINATED; ABSENT if the cloud's list lacks it; UNKNOWN if it does not say.
state_of() {
  local names
  if tpu describe "$NAME" --format='value(state)' 2>/dev/null; then return; fi
  if names="$(tpu list --format='value(name)' 2>/dev/null)" && ! grep -qE "(^|/)$NAME\$" <<<"$names"; then
    printf 'ABSENT\n'
  else
    printf 'UNKNOWN\n'
  fi
}

on_all() { insist_tpu ssh "$NAME" --worker=all --command="$1"; }
