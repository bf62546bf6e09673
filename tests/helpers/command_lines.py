"""Exit status and output of many command lines of train.py or evaluate.py, each run in a fork.

    PYTHONPATH=. python tests/helpers/command_lines.py train|evaluate < lists.json > answers.json

lists.json has a list of arguments for each command line, answers.json a [status, output] for each. The forks share
one import, which takes a second or more; refusing a wrong command line takes hardly any time.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile

import tiny_runs


def answers(program: str, lists: list[list[str]], env: dict[str, str] | None = None) -> list[tuple[int, str]]:
    """Return the exit status and the output (with errors) of each command line."""
    environment = os.environ | (env or {}) | {"PYTHONPATH": f"{tiny_runs.ROOT}:{tiny_runs.ROOT / 'tests/helpers'}"}
    command = [sys.executable, __file__, program]
    options = {"cwd": tiny_runs.ROOT, "env": environment, "capture_output": True, "text": True, "timeout": 300}
    process = subprocess.run(command, input=json.dumps(lists), **options)
    assert process.returncode == 0, process.stderr
    return [tuple(each) for each in json.loads(process.stdout)]


def main(program: str) -> None:
    lists = json.load(sys.stdin)
    command = importlib.import_module(program)
    if hasattr(command, "define_flags"):
        command.define_flags()
    found = []
    for arguments in lists:
        with tempfile.TemporaryFile("w+") as output:
            child = os.fork()  # JAX has started no thread yet
            if child == 0:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                sys.argv = [f"{program}.py", *arguments]
                return command.launch.run(command.main, kept="")
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            output.seek(0)
            found.append((status, output.read()))
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
