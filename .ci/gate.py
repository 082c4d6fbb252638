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
from typing import Any, NamedTuple

from project import has_remote, run_script

DELETED = "deleted"  # what DVC says of a file that is not here
UNCACHED = "not in cache"  # what it says of an output whose data a clone does not have


def ask_dvc(*command: str) -> dict[str, Any]:
    """What a command of DVC's says as JSON; where it fails, its message ends this program."""
    done = subprocess.run(["dvc", *command, "--json"], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"gate: `dvc {' '.join(command)}` failed (exit {done.returncode})")
    return json.loads(done.stdout)


class Finding(NamedTuple):
    """A difference from the lock: what a stage reads or writes at `path`; of commands and params the kind says all."""

    stage: str
    kind: str
    path: str = ""
    state: str = ""

    def __str__(self) -> str:
        return f"{self.stage}: {self.kind}" + (f": {self.path} {self.state}" if self.path else "")


def list_findings(status: dict[str, Any]) -> Iterator[Finding]:
    """All that `dvc status` says."""
    for stage, changes in status.items():
        for change in changes:
            if isinstance(change, str):  # such as `changed command`
                yield Finding(stage, change)
                continue
            for kind, paths in change.items():
                for path, state in paths.items():
                    if isinstance(state, dict):  # sections of the params
                        yield from (Finding(stage, f"{kind}: {path}: {name} {what}") for name, what in state.items())
                    else:
                        yield Finding(stage, kind, path, state)


def select_lost(findings: list[Finding]) -> list[Finding]:
    """What is not here and should be in a clone, too.

    A clone may lack outputs, and the folder or archive that fetch reads, where Git has never had them, or ignores them.
    """
    deleted = [finding for finding in findings if finding.state == DELETED]
    if not deleted:
        return []
    elsewhere = [Path(finding.path) for finding in findings if finding.kind == "changed outs"] + [read_source()]
    return [
        finding
        for finding in deleted
        if not any(Path(finding.path).is_relative_to(place) for place in elsewhere) or is_missed(finding.path)
    ]


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
    findings = list(list_findings(ask_dvc("status")))
    changed = [finding for finding in findings if finding.state not in (DELETED, UNCACHED)]
    lost, unpushed = select_lost(findings), list_unpushed()
    if changed:
        print(f"gate: dvc.lock is not that of this commit ({len(changed)}); run `dvc repro` and commit dvc.lock:")
        print("\n".join(f"  {finding}" for finding in changed))
    if lost:
        print(f"gate: not here, and only Git keeps it ({len(lost)}); bring it back and commit it:")
        print("\n".join(f"  {finding}" for finding in lost))
    if unpushed:
        print(f"gate: outputs that the remote does not have ({len(unpushed)}); run `dvc push`:")
        print("\n".join(f"  {path}" for path in unpushed))
    if changed or lost or unpushed:
        sys.exit(1)
    print("gate: dvc.lock is that of this commit")


if __name__ == "__main__":
    run_script(main)
