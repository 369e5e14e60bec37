"""CUDA: the GPU, its memory and its streams, behind the verbs of `vicort.runtime.device`. Never run on a GPU here."""

from vicort.runtime.cuda.arrays import DeviceArray
from vicort.runtime.cuda.device import CudaDevice
from vicort.runtime.cuda.gpu import Gpu, open_gpu
from vicort.runtime.cuda.streams import CudaEvent, CudaGraph, CudaStream

__all__ = ["CudaDevice", "CudaEvent", "CudaGraph", "CudaStream", "DeviceArray", "Gpu", "open_gpu"]
