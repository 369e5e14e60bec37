"""Imported by the Python inside a C program of the tests, whose PYTHONPATH has this folder: there
every engine set is the toy of the stand-in driver."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from support.stand_in_driver.engines import StandInEngineSet

from vicort.runtime.devices.cuda import open_gpu
from vicort.runtime.engines.engine_set import EngineSet

EngineSet.open = staticmethod(lambda folder, **_: StandInEngineSet(gpu=open_gpu()))
