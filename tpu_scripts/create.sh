#!/usr/bin/env bash
# Creates a TPU slice: tpu_scripts/create.sh --zone=us-west4-a --type=v5litepod-16 [--mode=ondemand|spot|queued|queued-spot]
# A slice of that name that exists and is ready is used as it is.
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
read_flags "$@"
need_zone

if [[ -z "$DRY_RUN" ]] && [[ "$(state_of)" == READY ]]; then
  say "$NAME is there and ready"
  exit 0
fi

slice=("--accelerator-type=$TYPE" "--version=$VERSION")
request=("--accelerator-type=$TYPE" "--runtime-version=$VERSION" "--node-id=$NAME")
case "$MODE" in
  ondemand) insist_tpu create "$NAME" "${slice[@]}" ;;
  spot) insist_tpu create "$NAME" "${slice[@]}" --spot ;;
  queued) queued create "$NAME" "${request[@]}" ;;
  queued-spot) queued create "$NAME" "${request[@]}" --spot ;;
  *) fail "--mode=$MODE: expected ondemand, spot, queued or queued-spot" ;;
esac

if [[ "$MODE" == queued* && -z "$DRY_RUN" ]]; then
  while [[ "$(state_of)" != READY ]]; do
    state="$(queued describe "$NAME" --format='value(state.state)')"
    case "$state" in
      FAILED | SUSPENDED) fail "the request for $NAME ended as $state" ;;
      *) say "the request for $NAME is $state" ;;
    esac
    sleep "$WAIT"
  done
fi
say "$NAME is created"
