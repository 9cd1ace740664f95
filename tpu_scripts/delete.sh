#!/usr/bin/env bash
# Deletes a slice, and its queued request if it had one: tpu_scripts/delete.sh --zone=...
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
read_flags "$@"
need_zone

if [[ "$MODE" == queued* ]]; then
  queued delete "$NAME" --force || [[ "$(state_of)" == ABSENT ]] || fail "the request for $NAME stays"
elif [[ -n "$DRY_RUN" ]] || [[ "$(state_of)" != ABSENT ]]; then
  insist_tpu delete "$NAME"
fi
say "$NAME is deleted"
