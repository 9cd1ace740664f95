#!/usr/bin/env bash
# Copies the tracked files of the checkout to every worker, as ~/peftjax: tpu_scripts/copy.sh --zone=...
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
read_flags "$@"
need_zone

archive="$(mktemp --suffix=.tar.gz)"
trap 'rm -f "$archive"' EXIT
run git -C "$SOURCE" archive --format=tar.gz --output="$archive" HEAD
insist_tpu scp "$archive" "$NAME:peftjax.tar.gz" --worker=all
on_all 'mkdir -p peftjax && tar -xzf peftjax.tar.gz -C peftjax'
