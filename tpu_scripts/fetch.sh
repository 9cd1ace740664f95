#!/usr/bin/env bash
# Fetches a run's folder and the logs of all workers: tpu_scripts/fetch.sh --zone=... --out=runs/NAME
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
read_flags "$@"
need_zone

run mkdir -p "$OUT"
insist_tpu scp --recurse "$NAME:$WORKDIR/." "$OUT" --worker=0
tpu ssh "$NAME" --worker=all --command='tail -n 2000 peftjax-run/log' | if [[ -n "$DRY_RUN" ]]; then cat; else
  tee "$OUT/workers.log" >/dev/null
fi
say "fetched to $OUT"
