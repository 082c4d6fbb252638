"""Whether `dvc.lock` is that of this commit, asked without any data; exits with 1 where it is not.

    python .ci/gate.py

Says which stage was last run with other code, params or commands, and, where the project has a remote, which outputs
nobody has pushed. DVC itself exits with 0 in both cases. That data is not here is no finding: a clone has none.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from project import has_remote, run_script

ABSENT = ("deleted", "not in cache")  # what DVC says of data that a clone does not have


def ask_dvc(*command: str) -> dict[str, Any]:
    """What a command of DVC's says as JSON; where it fails, its message ends this program."""
    done = subprocess.run(["dvc", *command, "--json"], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"gate: `dvc {' '.join(command)}` failed (exit {done.returncode})")
    return json.loads(done.stdout)


def list_changes(status: dict[str, Any]) -> Iterator[str]:
    """What differs from the lock, out of `dvc status`."""
    for stage, changes in status.items():
        for change in changes:
            if isinstance(change, str):  # such as `changed command`
                yield f"{stage}: {change}"
                continue
            for kind, paths in change.items():
                for path, state in paths.items():
                    if isinstance(state, dict):  # a section of the params
                        yield from (f"{stage}: {kind}: {path}: {name} {what}" for name, what in state.items())
                    elif state not in ABSENT:
                        yield f"{stage}: {kind}: {path} {state}"


def list_unpushed() -> list[str]:
    """The outputs of this commit that the remote lacks; none where there is no remote."""
    return ask_dvc("data", "status", "--not-in-remote").get("not_in_remote", []) if has_remote() else []


def main() -> None:
    changed, unpushed = list(list_changes(ask_dvc("status"))), list_unpushed()
    if changed:
        print(f"gate: dvc.lock is not that of this commit ({len(changed)}); run `dvc repro` and commit dvc.lock:")
        print("\n".join(f"  {line}" for line in changed))
    if unpushed:
        print(f"gate: outputs that the remote does not have ({len(unpushed)}); run `dvc push`:")
        print("\n".join(f"  {path}" for path in unpushed))
    if changed or unpushed:
        sys.exit(1)
    print("gate: dvc.lock is that of this commit")


if __name__ == "__main__":
    run_script(main)
