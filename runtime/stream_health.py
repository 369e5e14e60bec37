"""Whether a stream can go on."""

from __future__ import annotations

from vicort.runtime.devices.device import Device
from vicort.runtime.errors import DeviceError
from vicort.runtime.question_queue import QuestionQueue
from vicort.runtime.stages.pipeline import Pipeline


class StreamHealth:
    """What ends a stream before its end: a chunk that failed, or a device that is lost."""

    def __init__(self, pipeline: Pipeline, device: Device, questions: QuestionQueue) -> None:
        self._pipeline = pipeline
        self._device = device
        self._questions = questions

    def check(self) -> None:
        """Raises what ended the stream: what a chunk failed with, or that the device is lost."""
        self._pipeline.check()
        self.check_device()

    def check_device(self) -> None:
        """Raises DeviceError if the device is lost, which ends the stream."""
        try:
            self._device.check()
        except DeviceError as error:
            self._questions.fail(error)
            raise
