import gc
import subprocess
import sys

from imagepipe.core.garbage import YOUNG_OBJECTS

STAGE = """
import atexit, gc, sys
from imagepipe.core.lifetime import guard_stage
guard_stage()
print(gc.get_threshold()[0])
from imagepipe.core.stage import run_stage
atexit.register(lambda: print(gc.get_freeze_count() > 10_000))
run_stage(lambda: None)
"""


def test_a_stage_collects_seldom_and_at_its_end_no_more() -> None:
    done = subprocess.run([sys.executable, "-c", STAGE], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{YOUNG_OBJECTS}\nTrue\n", "")
    assert gc.get_freeze_count() == 0  # nobody's but the stage's
