"""Steps of `gpu_check` that behave badly, and one that does not; they run in processes of their
own."""

import os
import signal
import time

from vicort.benchmarks.gpu.lab import Skip, StepFailed
from vicort.runtime.errors import EngineError

NAMES = ("fine", "skips", "wrong", "breaks", "dies", "hangs")


def fine(lab):
    return {"folder": str(lab.folder)}


def compiles(lab):
    from torch._inductor import config

    return {"threads": config.compile_threads}


def skips(lab):
    raise Skip("no such\nthing here")


def wrong(lab):
    raise StepFailed("1 is not 2", {"numbers": [1, 2]})


def refuses(lab):
    raise EngineError("the plan is for another GPU")


def breaks(lab):
    return {"ratio": 1 / 0}


def dies(lab):
    os.kill(os.getpid(), signal.SIGSEGV)


def leaves(lab):
    os._exit(0)


def hangs(lab):
    time.sleep(600)
