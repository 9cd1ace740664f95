#!/usr/bin/env bash
# Starts training on all workers, in tmux, with logs: tpu_scripts/run.sh --zone=... -- --config=configs/... --config.a.b=c
# A worker's output is in ~/peftjax-run/log, its exit code, once it has ended, in ~/peftjax-run/exit_code.
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
read_flags "$@"
need_zone

train="cd peftjax && .venv/bin/python -m peftjax train --workdir=\$HOME/$WORKDIR"
if ((${#REST[@]})); then train+="$(printf ' %q' "${REST[@]}")"; fi
inner="mkdir -p ~/peftjax-run; rm -f ~/peftjax-run/exit_code; ($train) >> ~/peftjax-run/log 2>&1;"
inner+=' echo $? > ~/peftjax-run/exit_code'
command="tmux kill-session -t peftjax 2>/dev/null; tmux new-session -d -s peftjax $(printf '%q' "$inner")"
on_all "$command"
say "training started on $NAME; tpu_scripts/watch.sh watches it"
