#!/usr/bin/env bash
# Watches a run, and starts it again after a preemption or a lost worker: tpu_scripts/watch.sh --zone=... -- (as run.sh)
# Ends with 0 when the run is finished, and with 2 when it ended by a mistake that a restart does not mend.
# Exit codes of training: 0 finished; 2 a user's mistake; 143 asked to end, saved; 75 another process is gone.
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
read_flags "$@"
need_zone
here="$(dirname "${BASH_SOURCE[0]}")"
flags=("--name=$NAME" "--zone=$ZONE" "--project=$PROJECT" "--type=$TYPE" "--version=$VERSION" "--mode=$MODE"
  "--bucket=$BUCKET" "--source=$SOURCE" "--workdir=$WORKDIR" "--wait=$WAIT" "--tries=$TRIES")

again() {
  say "$1: again from the last checkpoint"
  "$here/run.sh" "${flags[@]}" -- "${REST[@]}"
}

if [[ -n "$DRY_RUN" ]]; then
  state_of
  tpu ssh "$NAME" --worker=all --command='cat peftjax-run/exit_code 2>/dev/null || echo running'
  exit 0
fi

restarts=0
while true; do
  state="$(state_of)"
  case "$state" in
    READY)
      codes="$(tpu ssh "$NAME" --worker=all --command='cat peftjax-run/exit_code 2>/dev/null || echo running' 2>/dev/null ||
        echo unreachable)"
      if grep -qx 2 <<<"$codes"; then
        tpu ssh "$NAME" --worker=0 --command='tail -n 5 peftjax-run/log' || true
        fail "training ended with a mistake; see the log"
      elif ! grep -qvx 0 <<<"$codes"; then
        say "the run is finished after $restarts restarts"
        exit 0
      elif ! grep -qx running <<<"$codes" && ! grep -qx unreachable <<<"$codes"; then
        restarts=$((restarts + 1))
        again "training ended with $(tr '\n' ' ' <<<"$codes")"
      fi
      ;;
    PREEMPTED | TERMINATED | STOPPED | ABSENT)
      restarts=$((restarts + 1))
      say "$NAME is $state"
      "$here/delete.sh" "${flags[@]}"
      "$here/create.sh" "${flags[@]}"
      "$here/setup.sh" "${flags[@]}"
      again "a new $NAME"
      ;;
    *) say "$NAME is $state" ;;
  esac
  sleep "$WAIT"
done
