"""What several rooms' tests share."""

import gc
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from support.scheduling import scheduling_kept
from support.shared import FOLDER
from support.sizes import EXPLORE, THOROUGH, examples, explores
from support.tiny_sets import tiny_set
from support.torchlib import leave_traces_unwritten, parse_torchlib_once
from support.traces import keep_traces

ENGINES = {"build_tiny", "tiny_engines", "live_engines"}
ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def pytest_addoption(parser):
    parser.addoption(
        "--explore",
        type=int,
        metavar="N",
        help="try N times as many examples in property tests, new ones in each run",
    )


def pytest_configure(config):
    """Make the folder that this process shares with its xdist workers, which start later and share
    the cores too; set which examples hypothesis makes, and how many."""
    if (times := config.getoption("explore")) is not None:
        os.environ[EXPLORE] = str(times)
    if "not slow" not in config.option.markexpr:
        os.environ[THOROUGH] = "1"
    # builds keep no kernels; test runs do
    os.environ.setdefault("TRITON_CACHE_DIR", str(Path.home() / ".triton" / "cache"))
    # no deadline: a busy machine is no fault of the code
    settings.register_profile(
        "vicort", deadline=None, max_examples=examples(100), derandomize=not explores()
    )
    settings.load_profile("vicort")
    if FOLDER not in os.environ:
        os.environ |= dict.fromkeys(ONE_THREAD, "1")
        os.environ[FOLDER] = tempfile.mkdtemp(prefix="vicort-test-")
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(FOLDER), ignore_errors=True))


def pytest_collection_finish():
    """Take what the imports made out of the garbage collector's sight: it is a million objects."""
    parse_torchlib_once()
    if "torch" in sys.modules:
        keep_traces()
    leave_traces_unwritten()
    gc.collect()
    gc.freeze()
    # seldom: traces of graphs and sessions make many objects that live
    gc.set_threshold(20_000, 20, 20)


def pytest_unconfigure():
    gc.unfreeze()


def pytest_collection_modifyitems(items):
    """Tests of real engines come last: one worker builds these while the other one runs the rest,
    which are the larger half."""
    items.sort(key=lambda item: bool(ENGINES & set(item.fixturenames)))


@pytest.fixture(autouse=True)
def scheduling():
    """Tests that write AV1 leave no realtime process behind, in which all that follows would hold
    up the rest of the machine."""
    with scheduling_kept():
        yield


@pytest.fixture(scope="session")
def build_tiny():
    """Folder of the embedded model's engine set for a CPU backend, built on first use."""
    return tiny_set


@pytest.fixture(scope="session")
def tiny_engines(build_tiny) -> Path:
    """For tests of other things than the backend: this one opens in a sixth of OpenVINO's time."""
    return build_tiny("onnxruntime")


@pytest.fixture(scope="session")
def gpu_child():
    """A process in which the real cuda.core runs on a stand-in for NVIDIA's driver."""
    from support.stand_in_driver.child import StandInChild  # late: few tests need it

    child = StandInChild()
    yield child
    child.close()
