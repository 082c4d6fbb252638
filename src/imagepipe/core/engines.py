"""The engine that the `run:` section names."""

from collections.abc import Generator
from contextlib import contextmanager

from imagepipe.core.errors import EnvironmentFault
from imagepipe.core.parallel import Engine, LocalEngine, start_fork_server
from imagepipe.core.run import RunParams, count_jobs

NO_RAY = (
    "run.engine is ray, but the package ray is not installed; run `pip install -c constraints.txt -e '.[ray]'` in the "
    "project's folder, or set run.engine to local."
)


@contextmanager
def open_engine(run: RunParams) -> Generator[Engine]:
    """The engine that `run.engine` names; raises EnvironmentFault where it cannot be had."""
    if run.engine == "local":
        start_fork_server()
        yield LocalEngine(count_jobs(run))
        return
    try:
        from imagepipe.core.cluster import open_cluster
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise EnvironmentFault(NO_RAY) from error
    with open_cluster(run) as engine:
        yield engine
