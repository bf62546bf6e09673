"""Tests of launchers/ and the commands in docs/cluster.md: syntax, flags, exit statuses, and the scripts' decisions.

The scripts run with a pretended srun, scontrol and gcloud.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from configs import default
from scripts.launch_local import job_status
from sdecor.core.commands import FAILED, INTERRUPTED, PARTLY, RETRY

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "launchers").glob("*.sh"))
MANIFESTS = sorted((ROOT / "launchers").glob("*.yaml"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = ("train.py", "evaluate.py")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_valid(script):
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "-x", script.relative_to(ROOT)], check=True, cwd=ROOT)


def bash(text: str, *arguments: str) -> str:
    command = ["bash", "-euo", "pipefail", "-c", text, "bash", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.strip()


def test_statuses_of_the_scripts_are_those_of_the_programs():
    assert bash("source launchers/job_status.sh; echo $RETRY $INTERRUPTED") == f"{RETRY} {INTERRUPTED}"
    both = "for s in $(seq 0 255); do if continues $s; then echo $s; fi; done"
    assert bash(f"source launchers/job_status.sh; {both}").split() == [str(RETRY), str(INTERRUPTED)]


@pytest.mark.parametrize(
    "statuses",
    [[0, 0], [RETRY, FAILED], [PARTLY, PARTLY], [INTERRUPTED, RETRY], [INTERRUPTED, 0], [RETRY, 137], [134, FAILED]]
    + [[2, RETRY], [INTERRUPTED, 137], [PARTLY, FAILED, RETRY], [137, 0], [137, 139], []],
    ids=str,
)
def test_scripts_and_launch_local_agree_on_the_status_of_a_job(statuses):
    text = 'source launchers/job_status.sh; job_status "$@"'
    found = {bash(text, *map(str, order)) for order in (statuses, statuses[::-1])}
    signals = [128 - status if status > 128 and status != INTERRUPTED else status for status in statuses]
    assert found == {str(job_status(signals))}


# Slurm: sbatch starts the script, srun the processes, scontrol puts the job back.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do echo "srun $1"; shift; done
worst=0
for number in "${!ENDS[@]}"; do :; done
IFS=, read -ra ends <<< "$ENDS"
for number in "${!ends[@]}"; do
  SLURM_PROCID=$number END=${ends[$number]} "$@" || { status=$?; ((status <= worst)) || worst=$status; }
done
exit "$worst"
"""
PYTHON = """#!/bin/bash
echo "python $*"
echo "devices ${JAX_LOCAL_DEVICE_IDS:-one}"
if [[ $END == signal ]]; then kill -TERM "$PPID"; END=130; fi  # Slurm signals the shell around the program too
exit "$END"
"""


def run_slurm(tmp_path: pathlib.Path, ends: str, **environment: str) -> tuple[int, str]:
    """Return the exit status and output of slurm.sh, with processes that end with the statuses `ends`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {"srun": SRUN, "python": PYTHON, "scontrol": '#!/bin/bash\necho "scontrol $*"\n'}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (tmp_path / "launchers").symlink_to(ROOT / "launchers")
    slurm = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_GPUS_ON_NODE": "4", "ENDS": ends}
    env = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"} | slurm | environment
    command = ["bash", str(ROOT / "launchers" / "slurm.sh"), "--workdir=a b"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    "ends, status, requeued",
    [("0,0", 0, False), ("130,130", 130, True), ("75,130", 75, True), ("75,1", 1, False), ("3,3", 3, False)]
    + [("137,75", 75, True), ("139,139", 139, False), ("signal,signal", 130, True)],
)
def test_slurm_requeues_what_the_same_command_continues(tmp_path, ends, status, requeued):
    found, output = run_slurm(tmp_path, ends, SLURM_NTASKS_PER_NODE="4")
    assert found == status, output
    assert ("scontrol requeue 7" in output) == requeued
    assert "python train.py --distributed --workdir=a b" in output and "devices one" in output


def test_slurm_gives_a_process_that_is_alone_on_its_node_all_gpus(tmp_path):
    _, output = run_slurm(tmp_path, "0", SLURM_NTASKS_PER_NODE="1", PROGRAM="evaluate.py")
    assert "devices 0,1,2,3" in output and "python evaluate.py" in output


def test_slurm_refuses_a_number_of_processes_that_leaves_gpus_idle(tmp_path):
    found, output = run_slurm(tmp_path, "0,0", SLURM_NTASKS_PER_NODE="2")
    assert found == FAILED and "take 1 or 4" in output and "python" not in output


def test_slurm_requeues_a_bounded_number_of_times(tmp_path):
    found, output = run_slurm(tmp_path, "75", SLURM_RESTART_COUNT="3", MOST_RESTARTS="3")
    assert found == RETRY and "scontrol" not in output and "not requeued" in output


def test_slurm_directives():
    text = (ROOT / "launchers" / "slurm.sh").read_text()
    directives = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", text, re.MULTILINE))
    assert directives["signal"] == "TERM@120"  # to the processes: with B: it would go to the script alone
    assert {"requeue", "open-mode", "gpus-per-node", "ntasks-per-node", "cpus-per-task"} <= set(directives)
    assert directives["open-mode"] == "append" and "gpus-per-task" not in directives
    assert max(i for i, line in enumerate(text.splitlines()) if line.startswith("#SBATCH")) < min(
        i for i, line in enumerate(text.splitlines()) if line and not line.startswith("#")
    )  # sbatch reads no directive after the first command


# TPU VMs: each call of gcloud takes the next line of a plan for what the workers print.
GCLOUD = """#!/bin/bash
echo "gcloud $*" >> "$LOG"
case "$*" in
  *describe*) [[ -f $FOLDER/slice ]] && echo "${STATE:-ACTIVE}" ;;
  *queued-resources\\ create*) touch "$FOLDER/slice" ;;
  *delete*) rm -f "$FOLDER/slice" ;;
  *worker-status*)
    for status in $(head -n 1 "$FOLDER/plan"); do echo "worker-status=$status"; done
    sed -i 1d "$FOLDER/plan" ;;
  *git\\ clone*) exit "${INSTALL:-0}" ;;
esac
"""


def run_tpu_vm(tmp_path: pathlib.Path, plan: str, **environment: str) -> tuple[int, list[str]]:
    """Return the exit status of tpu_vm.sh and the calls of gcloud; line i of `plan`: the statuses of start i."""
    (tmp_path / "gcloud").write_text(GCLOUD)
    (tmp_path / "gcloud").chmod(0o755)
    (tmp_path / "plan").write_text(plan)
    (tmp_path / "log").touch()
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(tmp_path / "log"), "FOLDER": str(tmp_path)}
    env |= {"ZONE": "z", "TYPE": "v5litepod-32", "CLONE": "https://x/sdecor.git", "PAUSE": "0", "MOST_STARTS": "3"}
    command = ["bash", str(ROOT / "launchers" / "tpu_vm.sh"), "slice", "train.py", "--workdir=gs://b/a b"]
    done = subprocess.run(command, env=os.environ | env | environment, capture_output=True, text=True, timeout=30)
    return done.returncode, (tmp_path / "log").read_text().splitlines()


@pytest.mark.parametrize(
    "plan, status, starts",
    [("0 0\n", 0, 1), ("130 130\n\n75 0\n", 75, 3), ("130 130\n0 0\n", 0, 2), ("75 1\n0 0\n", 1, 1), ("\n0 0\n", 0, 2)],
)
def test_tpu_vm_starts_again_on_new_workers(tmp_path, plan, status, starts):
    found, calls = run_tpu_vm(tmp_path, plan)
    assert found == status
    assert sum("queued-resources create" in call for call in calls) == starts
    ran = [call for call in calls if "worker-status" in call]
    assert len(ran) == starts and "--worker=all" in ran[0] and r"train.py --workdir=gs://b/a\ b --distributed" in ran[0]
    assert "delete" in calls[-1]


def test_tpu_vm_stops_where_the_installation_fails(tmp_path):
    found, calls = run_tpu_vm(tmp_path, "", INSTALL="1")
    assert found == FAILED and sum("queued-resources create" in call for call in calls) == 1


# JobSets.


@pytest.fixture(params=MANIFESTS, ids=lambda path: path.name)
def jobset(request):
    return next(each for each in yaml.safe_load_all(request.param.read_text()) if each["kind"] == "JobSet")


def job_of(jobset: dict) -> dict:
    (job,) = jobset["spec"]["replicatedJobs"]
    return job["template"]["spec"]


def container_of(jobset: dict) -> dict:
    (container,) = job_of(jobset)["template"]["spec"]["containers"]
    return container


def test_jobset_restarts_what_the_same_command_continues(jobset):
    pods = job_of(jobset)["podFailurePolicy"]["rules"]
    assert all(rule["action"] == "FailJob" for rule in pods)
    assert pods[0]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    codes = [rule["onExitCodes"] for rule in pods[1:]]
    assert all(each["operator"] == "In" and each["containerName"] == container_of(jobset)["name"] for each in codes)
    interrupted, failed = (set(each["values"]) for each in codes)
    assert interrupted == {INTERRUPTED}
    assert {FAILED, PARTLY} <= failed and not failed & {0, RETRY, INTERRUPTED} and max(failed) < 128
    free, fails = jobset["spec"]["failurePolicy"]["rules"]
    assert (free["action"], fails["action"]) == ("RestartJobSetAndIgnoreMaxRestarts", "FailJobSet")
    # Messages of the Job controller, by rule of the pods.
    messages = [
        "Pod default/a-0-0 has condition DisruptionTarget matching FailJob rule at index 0",
        f"Container train for pod default/a-0-0 failed with exit code {INTERRUPTED} matching FailJob rule at index 1",
        f"Container train for pod default/a-0-0 failed with exit code {FAILED} matching FailJob rule at index 2",
    ]
    matched = [
        any(re.search(pattern, message) for pattern in free["onJobFailureMessagePatterns"]) for message in messages
    ]
    assert matched == [True, True, False] and "onJobFailureMessagePatterns" not in fails
    assert free["onJobFailureReasons"] == fails["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0


def test_jobset_starts_one_indexed_pod_a_host(jobset):
    job = job_of(jobset)
    pod = job["template"]["spec"]
    assert job["completionMode"] == "Indexed" and job["completions"] == job["parallelism"] > 1
    assert job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] >= 60
    resources = container_of(jobset)["resources"]
    assert resources["requests"] == resources["limits"]
    selector = pod["nodeSelector"]
    if topology := selector.get("cloud.google.com/gke-tpu-topology"):
        rows, columns = map(int, topology.split("x"))
        assert rows * columns == job["completions"] * resources["limits"]["google.com/tpu"]
    spot = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
    assert selector["cloud.google.com/gke-spot"] == "true" and spot in pod["tolerations"]
    mounted = {each["name"] for each in container_of(jobset)["volumeMounts"]}
    assert mounted == {each["name"] for each in pod["volumes"]}


# Flags: every one in a launcher or in the documentation exists.


def commands_in(text: str) -> list[list[str]]:
    """Return the words after train.py or evaluate.py of every command in a script or page, continued lines joined."""
    found = []
    text = re.sub(r"\\\n[#\s]*", " ", text)
    for line in re.findall(rf"(?:{'|'.join(map(re.escape, PROGRAMS))})(?:[ ]+--[^`\n]*)", text):
        words = re.split(r"\s+", re.split(r"\s#|[|;)]|&&", line)[0].strip())
        found.append(words)
    return found


def all_commands() -> list[list[str]]:
    manifests = [
        container_of(each)["command"][1:]
        for path in MANIFESTS
        for each in yaml.safe_load_all(path.read_text())
        if each["kind"] == "JobSet"
    ]
    return manifests + [words for path in [*SCRIPTS, *PAGES] for words in commands_in(path.read_text())]


@pytest.fixture(scope="module")
def flags() -> dict[str, set[str]]:
    """Return the names of the flags of each program; the two share one import of JAX."""
    code = (
        "import os, evaluate\n"
        "from absl import flags\n"
        "if os.fork() == 0:\n"
        "    import train\n"
        "    print('train.py', *flags.FLAGS)\n"
        "else:\n"
        "    os.wait()\n"
        "    evaluate.define_flags()\n"
        "    print('evaluate.py', *flags.FLAGS)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    found = {words[0]: set(words[1:]) for words in map(str.split, done.stdout.splitlines())}
    assert set(found) == set(PROGRAMS) and all("workdir" in names for names in found.values())
    return {program: names | {f"no{name}" for name in names} for program, names in found.items()}


def test_every_flag_exists(flags):
    commands = all_commands()
    assert len(commands) > 20
    unknown = {
        f"{program} {word}"
        for program, *words in commands
        for word in words
        if word.startswith("--")
        and (name := word[2:].partition("=")[0].partition(".")[0].strip("[]…"))
        and name not in flags[program]
    }
    assert not unknown


def rows(page: str, pattern: str) -> list[str]:
    """Return the first cells of a page's table rows that match a pattern."""
    return re.findall(rf"^\| {pattern} \|", (ROOT / "docs" / page).read_text(), re.MULTILINE)


def test_documented_flags_and_fields_exist(flags):
    named = rows("cluster.md", r"`--(\w+)[^`]*`")
    assert len(named) > 4 and set(named) <= flags["train.py"]
    fields = rows("cluster.md", r"`(\w+\.\w+)`")
    config = default.get_config()
    assert fields and all(name.split(".")[1] in config[name.split(".")[0]] for name in fields)


def test_documented_statuses_are_those_of_the_programs():
    documented = {int(number) for cell in rows("cluster.md", r"([\d, ]+)") for number in cell.split(",")}
    assert documented >= {0, FAILED, PARTLY, RETRY, INTERRUPTED}


def test_tests_named_for_reliability_exist():
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", (ROOT / "docs" / "reliability.md").read_text())
    assert len(named) > 5
    for path, name in named:
        assert f"def {name}(" in (ROOT / "tests" / path).read_text(), (path, name)
