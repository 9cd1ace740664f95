#!/usr/bin/env bash
# Copies the checkout to every worker and installs it there: tpu_scripts/setup.sh --zone=... [--bucket=NAME]
# On a machine that exists already it is the first step.
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
read_flags "$@"
need_zone

"$(dirname "${BASH_SOURCE[0]}")/copy.sh" --name="$NAME" --zone="$ZONE" --project="$PROJECT" --source="$SOURCE" \
  --tries="$TRIES" --wait="$WAIT" ${DRY_RUN:+--dry_run}

install='set -e; cd peftjax; test -d .venv || python3 -m venv .venv;'
install+=' .venv/bin/pip install --quiet --upgrade pip; .venv/bin/pip install --quiet -r requirements.lock;'
install+=" .venv/bin/pip install --quiet --no-deps -e .; .venv/bin/pip install --quiet 'libtpu==0.0.42.*';"
install+=' command -v tmux >/dev/null || sudo apt-get install -y -qq tmux'
on_all "$install"
if [[ -n "$BUCKET" ]]; then
  on_all "mkdir -p bucket; mountpoint -q bucket || gcsfuse --implicit-dirs $BUCKET bucket"
fi
say "$NAME is set up"
