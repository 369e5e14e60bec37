"""vicort inside Python programs: frames from DLPack, answers in an event loop."""

import asyncio
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from support.fake_engines import FakeEngineSet
from support.streams import frames
from support.systems import system

from vicort.runtime.core import Frame, Sampling
from vicort.runtime.errors import ConfigError, QuestionError
from vicort.runtime.session import Session

SHORT = Sampling(max_tokens=5)
ASK = "what color was the circle?"


@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.booleans(),
    st.booleans(),
    st.sampled_from([(1, 1), (-1, 1), (2, -2), (1, 3)]),
)
def test_a_tensor_is_a_picture_without_a_copy(height, width, planar, from_torch, steps):
    """Rows and columns in any order and distance, channels first or last, from NumPy and from
    PyTorch."""
    assume(not from_torch or min(steps) > 0)  # PyTorch has no negative strides
    whole = np.random.default_rng(0).integers(0, 256, (height * 3, width * 3, 3), np.uint8)
    part = whole[:: steps[0], :: steps[1]][:height, :width]
    shown = part.transpose(2, 0, 1) if planar and part.shape[1] != 3 else part
    tensor = torch.from_numpy(shown) if from_torch else shown
    frame = Frame.of(tensor, Fraction(1, 3), 7)
    np.testing.assert_array_equal(frame.image, part)
    assert np.shares_memory(frame.image, whole)
    assert (frame.time, frame.index) == (Fraction(1, 3), 7)


def test_a_float_time_is_what_it_prints():
    assert Frame.of(np.zeros((2, 2, 3), np.uint8), 0.1).time == Fraction(1, 10)


class GpuTensor:
    """A tensor that would come to the CPU by a silent copy, as some libraries' do."""

    def __dlpack_device__(self):
        return (2, 0)

    def __dlpack__(self, **_):
        return np.zeros((2, 2, 3), np.uint8).__dlpack__()


@pytest.mark.parametrize(
    ("tensor", "time", "words"),
    [
        (np.zeros((2, 2, 3), np.float32), 0, "float32 2x2x3"),
        (np.zeros((2, 2, 4), np.uint8), 0, "uint8 2x2x4"),
        (np.zeros((2, 2), np.uint8), 0, "uint8 2x2 "),
        (np.zeros((0, 2, 3), np.uint8), 0, "uint8 0x2x3"),
        ([[1, 2, 3]], 0, "a list cannot be read from host memory as a picture"),
        (
            GpuTensor(),
            0,
            "a GpuTensor cannot be read from host memory as a picture .it is in GPU memory.: "
            "move it to the CPU",
        ),
        (
            torch.zeros((2, 2, 3), requires_grad=True),
            0,
            "a Tensor cannot be read from host memory as a picture",
        ),
        (torch.zeros((2, 2, 3), dtype=torch.uint8, device="meta"), 0, "move it to the CPU"),
        (np.zeros((2, 2, 3), np.uint8), float("nan"), "nan s"),
    ],
)
def test_what_is_no_picture_is_refused(tensor, time, words):
    with pytest.raises(ConfigError, match=words):
        Frame.of(tensor, time)


def test_tensors_and_arrays_give_the_same_answer():
    def answer(as_frame):
        with Session(FakeEngineSet(), system(), sampling=SHORT) as session:
            for frame in frames(9):
                session.push(as_frame(frame))
            return session.ask(ASK).text

    plain = answer(lambda frame: frame)
    assert (
        answer(lambda frame: Frame.of(torch.from_numpy(frame.image).permute(2, 0, 1), frame.time))
        == plain
    )
    assert answer(lambda frame: Frame.of(frame.image, float(frame.time))) == plain


@pytest.mark.parametrize("overlap", [True, False])
def test_pieces_come_while_the_event_loop_goes_on(overlap):
    async def talk(session):
        for frame in frames(9):
            await asyncio.to_thread(session.push, frame)
        asks = [session.ask_stream(ASK), session.ask_stream("what is there now?")]
        return await asyncio.gather(*(_collect(ask) for ask in asks))

    with Session(FakeEngineSet(), system(), sampling=SHORT, overlap=overlap) as session:
        streamed = asyncio.run(talk(session))
        assert ["".join(pieces) for pieces in streamed] == [
            session.ask(ASK).text,
            session.ask("what is there now?").text,
        ]


async def _collect(pieces):
    return [piece async for piece in pieces]


def test_a_question_that_cannot_be_asked_is_told_to_the_loop():
    with (
        Session(FakeEngineSet(), system(), sampling=SHORT) as session,
        pytest.raises(QuestionError, match="tokens"),
    ):
        asyncio.run(_collect(session.ask_stream("what " * 500)))


def test_leaving_early_harms_nothing():
    async def leave(session):
        async for _ in session.ask_stream(ASK):
            break

    with Session(FakeEngineSet(), system(), sampling=SHORT) as session:
        asyncio.run(leave(session))
        session.finish()
        assert session.ask(ASK).text


def test_a_close_ends_the_stream_of_an_answer():
    """A question whose time never comes, while the session is closed."""

    async def wait(session):
        asking = asyncio.create_task(_collect(session.ask_stream(ASK, at=Fraction(1000))))
        await asyncio.sleep(0.05)
        await asyncio.to_thread(session.close)
        await asyncio.wait_for(asking, 5)

    with (
        Session(FakeEngineSet(), system(), sampling=SHORT) as session,
        pytest.raises(Exception, match="the session was closed"),
    ):
        asyncio.run(wait(session))
