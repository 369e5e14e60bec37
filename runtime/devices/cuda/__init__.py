"""CUDA devices: streams and memory of a GPU, with the protocols of `vicort.runtime.devices.device`.

Tested on a simulated GPU; docs/proof.md says what has run on a real one.
"""

from vicort.runtime.devices.cuda.arrays import DeviceArray
from vicort.runtime.devices.cuda.cuda_device import CudaDevice
from vicort.runtime.devices.cuda.gpu import Gpu, open_gpu
from vicort.runtime.devices.cuda.streams import CudaEvent, CudaGraph, CudaStream

__all__ = ["CudaDevice", "CudaEvent", "CudaGraph", "CudaStream", "DeviceArray", "Gpu", "open_gpu"]
