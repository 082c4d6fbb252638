import sys

import pytest

from imagepipe.core.engines import open_engine
from imagepipe.core.errors import EnvironmentFault
from imagepipe.core.parallel import LocalEngine
from tests.core.made import make_run


def test_local_is_this_machine() -> None:
    with open_engine(make_run(jobs=3)) as engine:
        assert engine == LocalEngine(3)


def test_ray_that_is_not_installed_is_a_fault_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "imagepipe.core.cluster", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    message = (
        r"^run\.engine is ray, but the package ray is not installed; run "
        r"`pip install -c constraints\.txt -e '\.\[ray\]'` in the project's folder, or set run\.engine to local\.$"
    )
    with pytest.raises(EnvironmentFault, match=message), open_engine(make_run(engine="ray")):
        pass
