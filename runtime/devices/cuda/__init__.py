"""CUDA: the GPU, its memory and its streams, behind the verbs of `vicort.runtime.devices.device`.
Never run on a GPU here."""

from vicort.runtime.devices.cuda.arrays import DeviceArray
from vicort.runtime.devices.cuda.cuda_device import CudaDevice
from vicort.runtime.devices.cuda.gpu import Gpu, open_gpu
from vicort.runtime.devices.cuda.streams import CudaEvent, CudaGraph, CudaStream

__all__ = ["CudaDevice", "CudaEvent", "CudaGraph", "CudaStream", "DeviceArray", "Gpu", "open_gpu"]
