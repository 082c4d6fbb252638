"""Whether `dvc.lock` is that of this commit, asked without any data; exits with 1 where it is not.

    python .ci/gate.py

Says which stage was last run with other code, params or commands, and, where the project has a remote, which outputs
nobody has pushed. DVC itself exits with 0 in both cases. That data is not here is no finding: a clone has none. What
stages read and only Git keeps is: nothing brings that back.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from project import has_remote, run_script

DELETED = "deleted"  # what DVC says of a file that is not here
UNCACHED = "not in cache"  # what it says of an output whose data a clone does not have


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
                    elif state not in (DELETED, UNCACHED):
                        yield f"{stage}: {kind}: {path} {state}"


def list_lost(status: dict[str, Any]) -> Iterator[str]:
    """What is not here and should be in a clone, too, out of `dvc status`.

    A clone may lack outputs, and the folder or archive that fetch reads, where Git has never had them, or ignores them.
    """
    kinds = [
        (stage, kind, paths)
        for stage, changes in status.items()
        for change in changes
        if isinstance(change, dict)
        for kind, paths in change.items()
    ]
    outputs = [Path(path) for _, kind, paths in kinds if kind == "changed outs" for path in paths]
    lost = [(stage, kind, path) for stage, kind, paths in kinds for path, state in paths.items() if state == DELETED]
    if not lost:
        return
    elsewhere = [*outputs, read_source()]
    for stage, kind, path in lost:
        if not any(Path(path).is_relative_to(place) for place in elsewhere) or is_missed(path):
            yield f"{stage}: {kind}: {path} {DELETED}"


def read_source() -> Path:
    """What fetch reads."""
    from imagepipe.core.config import PARAMS_FILE, read_yaml  # only where DVC has said that the environment is there

    return Path(read_yaml(PARAMS_FILE)[0]["fetch"]["path"])


def is_missed(path: str) -> bool:
    """Whether Git has, or once had, a path that it does not ignore."""
    ignores = ask_git("check-ignore", "--no-index", path, f"{path}/")  # what is not here may have been a folder
    return not ignores and bool(ask_git("log", "-1", "--format=%h", "HEAD", "--", path))


def ask_git(*command: str) -> str:
    """What a command of Git's says; nothing where it fails, as for a path outside the repository."""
    done = subprocess.run(["git", *command], capture_output=True, text=True, check=False)
    return "" if done.returncode else done.stdout


def list_unpushed() -> list[str]:
    """The outputs of this commit that the remote lacks; none where there is no remote."""
    return ask_dvc("data", "status", "--not-in-remote").get("not_in_remote", []) if has_remote() else []


def main() -> None:
    status = ask_dvc("status")
    changed, lost, unpushed = list(list_changes(status)), list(list_lost(status)), list_unpushed()
    if changed:
        print(f"gate: dvc.lock is not that of this commit ({len(changed)}); run `dvc repro` and commit dvc.lock:")
        print("\n".join(f"  {line}" for line in changed))
    if lost:
        print(f"gate: not here, and only Git keeps it ({len(lost)}); bring it back and commit it:")
        print("\n".join(f"  {line}" for line in lost))
    if unpushed:
        print(f"gate: outputs that the remote does not have ({len(unpushed)}); run `dvc push`:")
        print("\n".join(f"  {path}" for path in unpushed))
    if changed or lost or unpushed:
        sys.exit(1)
    print("gate: dvc.lock is that of this commit")


if __name__ == "__main__":
    run_script(main)
