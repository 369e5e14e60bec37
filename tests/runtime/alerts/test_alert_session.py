"""Alerts on a stream: what is asked when, what is reported of it, and what is kept as evidence."""

import io
import shutil
import stat
from concurrent.futures import Future
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.seeing_session import SeeingSession, brightness

from vicort.runtime.alerts import alert_reporter
from vicort.runtime.alerts.alert_event import AlertEvent
from vicort.runtime.alerts.alert_file import parse_alerts
from vicort.runtime.alerts.alert_reporter import AlertReporter
from vicort.runtime.alerts.alert_session import AlertSession
from vicort.runtime.alerts.rule import Hysteresis
from vicort.runtime.core import Answer, Frame, Question
from vicort.runtime.errors import ConfigError, QuestionError
from vicort.runtime.sources.sampler import Sampler
from vicort.runtime.sources.source import Ending, Wanted

QUICK = "fire: {for: 1 of 1}, clear: {for: 1 of 1}"


def file_of(*alerts, folder, stream=""):
    entries = "".join(f"\n  - {{name: {each}}}" for each in alerts)
    return parse_alerts(
        f"streams: {{front: {{{stream}}}}}\nevidence: {folder}\nalerts:{entries}", "a.yaml"
    )


class Watched:
    """A stream of an alert file on sessions that see brightness."""

    def __init__(self, file, *, waits=True, live=False, answers=False, sends=True, **session):
        self.events, self.messages, self.warnings, self.sessions = [], [], [], {}

        def open_session(zone, on_event):
            self.sessions[zone] = SeeingSession(on_event=on_event, **session)
            return self.sessions[zone]

        reporter = AlertReporter.of_file(
            "front",
            file,
            live=live,
            on_event=self.events.append,
            send=self.messages.append if sends else None,
            warn=self.warnings.append,
        )
        self.stream = AlertSession(
            "front",
            file,
            open_session,
            reporter,
            waits=waits,
            on_event=self.events.append,
            warn=self.warnings.append,
            answers=answers,
        )

    @property
    def alerts(self):
        return [each for each in self.events if isinstance(each, AlertEvent)]

    @property
    def counts(self):
        return self.stream.counts().alerts


def picture(value, size=(12, 16)):
    return np.full((*size, 3), value, np.uint8)


def frames(values, fps=4, size=(12, 16)):
    """Frames of one brightness each, 0 to 255."""
    return [
        Frame(picture(value, size), Fraction(number, fps), number)
        for number, value in enumerate(values)
    ]


def seconds(values, fps=4):
    """The same, with a brightness for each second."""
    return frames([value for value in values for _ in range(fps)], fps)


BRIGHT, DARK = 250, 5
RULES = st.sampled_from(
    [
        QUICK,
        "fire: {above: 0.5, for: 2 of 3}, clear: {below: 0.5, for: 2 of 2}",
        "fire: {above: 0.7}, clear: {below: 0.3, for: 1 of 2}, cooldown: 4s",
    ]
)
PERIODS = st.sampled_from(["0.5s", "1s", "1.7s"])


@given(
    st.lists(st.integers(0, 255), min_size=1, max_size=60),
    RULES,
    PERIODS,
    st.booleans(),
)
def test_a_file_gives_the_events_of_the_rule_over_all_answers(
    tmp_path_factory, values, rule, period, is_source
):
    """Whether frames are pushed as they come, or a source asks which are wanted."""
    folder = tmp_path_factory.getbasetemp() / "evidence"
    watched = Watched(
        file_of(f"bright, question: is it bright, ask_every: {period}, {rule}", folder=folder),
        sends=False,
    )
    pushed = frames(values)
    if is_source:
        feed(watched.stream, pushed)
    else:
        for frame in pushed:
            watched.stream.push(frame)
        watched.stream.finish()
    assert [changed(each) for each in watched.alerts] == expected(
        watched.stream, pushed, Fraction(period[:-1]), is_source
    )


def changed(event):
    return event.state, event.at, [at for at, _ in event.series]


def feed(stream, pushed):
    """As a source does: give the frames that are wanted, and the one before where it stays."""
    before = None
    for frame in pushed:
        wanted = stream.wants(frame.time)
        if wanted is Wanted.BOTH:
            stream.push(before)
        if wanted:
            stream.push(frame)
        before = None if wanted else frame
    stream.finish(Ending(before, pushed[-1].time))


def expected(stream, pushed, period, is_source):
    """The rule over the newest taken frame at each due time until the last frame."""
    sampler, taken = Sampler(2), []
    for frame in pushed:
        if stayed := sampler.stayed(frame.time):
            taken.append(stayed)
        if sampled := sampler.sample(frame):
            taken.append(sampled)
    hysteresis = Hysteresis(stream._questions.askers[0].entry.rule)
    found, due = [], period
    while due <= pushed[-1].time:
        seen = [frame for frame in taken if frame.time <= due][-1]
        if change := hysteresis.add(seen.time, brightness(seen.image)):
            found.append((change.state, change.at, [each.at for each in change.readings]))
        due += period
    return found


def test_an_event_says_what_led_to_it(tmp_path):
    watched = Watched(file_of("bright, question: is it bright, window: 2s", folder=tmp_path))
    for frame in seconds([DARK, BRIGHT, BRIGHT, BRIGHT, DARK, DARK, DARK, DARK]):
        watched.stream.push(frame)
    watched.stream.finish()
    fired, cleared = watched.alerts
    assert fired.to_json() == {
        "event": "alert",
        "alert": "bright",
        "stream": "front",
        "state": "fired",
        "at": 2.0,
        "question": "is it bright",
        "choice": "yes",
        "probability": 0.980392,
        "series": [[1.0, 0.980392], [2.0, 0.980392]],
        "choices": {"yes": 0.980392, "no": 0.019608},
        "read": [[0.0, 2.0]],
        "key": fired.key,
        "picture": fired.picture,
    }
    assert (cleared.state, cleared.at, cleared.picture) == ("cleared", 6, None)
    assert cleared.key != fired.key
    assert watched.counts == {
        "bright": {"asked": 7, "skipped": 0, "failed": 0, "fired": 1, "cleared": 1}
    }
    asked = [question for question, _ in watched.sessions[None].asked]
    assert [(each.at, each.since) for each in asked[:3]] == [(1, 0), (2, 0), (3, 1)]
    assert {each.constraint.choices for each in asked} == {("yes", "no")}


def test_what_is_due_at_one_moment_is_asked_together(tmp_path):
    """Submitted before the stream gets there, with the same time."""
    watched = Watched(
        file_of(
            "a, question: is it bright",
            "b, question: is it dark",
            "c, question: is it green, ask_every: 2s",
            folder=tmp_path,
        )
    )
    session = watched.sessions[None]
    waiting = {}
    for frame in seconds([DARK] * 5):
        now = {question.id: question.at for question, _ in session.waiting}
        assert all(at >= session.now for at in now.values())
        waiting |= now
        watched.stream.push(frame)
    asked = [question for question, _ in session.asked]
    assert all(waiting[each.id] == each.at for each in asked)
    assert sorted((float(each.at), each.text[6:]) for each in asked) == [
        *[(1.0, "bright"), (1.0, "dark")],
        *[(2.0, "bright"), (2.0, "dark"), (2.0, "green")],
        *[(3.0, "bright"), (3.0, "dark")],
        *[(4.0, "bright"), (4.0, "dark"), (4.0, "green")],
    ]


def test_live_skips_what_is_due_while_an_answer_is_open_and_counts_it(tmp_path):
    watched = Watched(
        file_of(f"bright, question: is it bright, {QUICK}", folder=tmp_path),
        waits=False,
        live=True,
        held=True,
    )
    pushed = seconds([BRIGHT] * 9)
    session = watched.sessions[None]
    for frame in pushed:
        watched.stream.push(frame)
        if frame.time in (4, Fraction(25, 4)):
            session.answer_held()
    assert [each.at for each, _ in session.asked] == [1, 5, 7]
    session.held = False
    session.answer_held()
    watched.stream.finish()
    (fired,) = watched.alerts
    assert (fired.at, fired.delay_ms is not None) == (1, True)
    assert watched.counts["bright"] | {"failed": 0} == {
        "asked": 3,
        "skipped": 5,
        "failed": 0,
        "fired": 1,
        "cleared": 0,
    }


@pytest.mark.parametrize("waits", [True, False])
def test_then_is_asked_about_the_evidence_at_the_moment_of_firing(tmp_path, waits):
    watched = Watched(
        file_of(
            f"bright, question: is it bright, window: 2s, then: what is it, {QUICK}",
            folder=tmp_path,
        ),
        waits=waits,
    )
    for frame in seconds([DARK, DARK, BRIGHT, BRIGHT, DARK, DARK]):
        watched.stream.push(frame)
    watched.stream.finish()
    asked = [question for question, _ in watched.sessions[None].asked]
    (then,) = [each for each in asked if each.text == "what is it"]
    before = asked[asked.index(then) - 1]
    assert (then.at, then.since, then.until, then.constraint) == (2, 0, 2, None)
    assert before.id == then.id.removesuffix(".then")
    assert [each.description for each in watched.alerts] == ["brightness 0.98", None]


def test_an_event_comes_without_a_description_that_fails(tmp_path):
    watched = Watched(
        file_of(f"bright, question: is it bright, then: what is it, {QUICK}", folder=tmp_path),
        fails=lambda question: question.text == "what is it",
    )
    for frame in seconds([BRIGHT] * 3):
        watched.stream.push(frame)
    watched.stream.finish()
    assert [(each.state, each.description) for each in watched.alerts] == [("fired", None)]
    assert watched.warnings == [
        "alert bright: a question has no answer: the answer broke off: ask again"
    ]


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("text", ["what is it", "is it bright"])
def test_any_error_of_an_answer_is_counted_and_the_event_comes(tmp_path, monkeypatch, waits, text):
    """Also one that is none of vicort, as those of an engine."""
    watched = Watched(
        file_of(f"bright, question: is it bright, then: what is it, {QUICK}", folder=tmp_path),
        waits=waits,
    )
    session = watched.sessions[None]
    submit, broken = session.submit, Future()
    broken.set_exception(RuntimeError("out of memory"))
    texts = []

    def break_once(question, on_token=None):
        texts.append(question.text)
        return broken if question.text == text and texts.count(text) == 1 else submit(question)

    monkeypatch.setattr(session, "submit", break_once)
    for frame in seconds([BRIGHT] * 6):
        watched.stream.push(frame)
    watched.stream.finish()
    assert [each.state for each in watched.alerts] == ["fired"]
    assert watched.counts["bright"]["failed"] == 1
    assert watched.warnings == [
        "alert bright: a question has no answer: RuntimeError: out of memory"
    ]


@pytest.mark.parametrize("waits", [True, False])
def test_a_question_that_is_refused_later_is_tried_again(tmp_path, monkeypatch, waits):
    """As where too many are open; nothing that was due is skipped for it in the time to come."""
    watched = Watched(
        file_of(f"bright, question: is it bright, {QUICK}", folder=tmp_path), waits=waits
    )
    session = watched.sessions[None]
    submit = session.submit

    def refuse(question, on_token=None):
        if 2 <= session.now < 4:
            raise QuestionError("10000 questions are open: wait for their answers")
        return submit(question)

    monkeypatch.setattr(session, "submit", refuse)
    for frame in seconds([DARK] * 4 + [BRIGHT] * 3):
        watched.stream.push(frame)
    watched.stream.finish()
    assert [each.at for each in watched.alerts] == [5]
    assert watched.warnings == [
        "alert bright: its next question is refused: 10000 questions are open: wait for their "
        "answers; it is tried again with each frame"
    ]


@pytest.mark.parametrize("waits", [True, False])
def test_answers_that_fail_are_counted_and_the_alert_goes_on(tmp_path, waits):
    watched = Watched(
        file_of(f"bright, question: is it bright, {QUICK}", folder=tmp_path),
        waits=waits,
        fails=lambda question: question.at <= 2,
    )
    for frame in seconds([BRIGHT] * 6):
        watched.stream.push(frame)
    watched.stream.finish()
    assert [each.at for each in watched.alerts] == [3]
    assert watched.counts["bright"]["failed"] == 2
    assert len(watched.warnings) == 1


def test_answers_to_alerts_are_events_only_on_request(tmp_path):
    for answers in (False, True):
        watched = Watched(file_of("b, question: is it bright", folder=tmp_path), answers=answers)
        for frame in seconds([DARK] * 3):
            watched.stream.push(frame)
        watched.stream.finish()
        found = [each for each in watched.events if isinstance(each, Answer)]
        assert len(found) == 2 * answers


def test_words_that_the_model_does_not_know_are_said_once(tmp_path):
    watched = Watched(file_of("r, question: is there a rocket", folder=tmp_path))
    assert len(watched.warnings) == 1
    assert watched.warnings[0].startswith("alert r: the model does not know 'rocket'")


def test_a_question_that_is_refused_closes_the_sessions(tmp_path, monkeypatch):
    opened = []

    def refuse(session, question, on_token=None):
        opened.append(session)
        raise QuestionError("it is too long: ask a shorter one")

    monkeypatch.setattr(SeeingSession, "submit", refuse)
    with pytest.raises(QuestionError, match=r"^alert b: it is too long"):
        Watched(file_of("b, question: is it bright", folder=tmp_path))
    assert [each.closed for each in opened] == [True]


@pytest.mark.parametrize(("sends", "expected"), [(True, ["cleared"]), (False, [])])
def test_what_had_fired_at_the_end_of_a_run_clears_in_the_next(tmp_path, sends, expected):
    """Where messages are delivered: the receivers wait for it. A dry run begins anew."""
    file = file_of(f"bright, question: is it bright, {QUICK}", folder=tmp_path)
    first = Watched(file, sends=sends)
    for frame in seconds([BRIGHT] * 3):
        first.stream.push(frame)
    first.stream.finish()
    assert [each.state for each in first.alerts] == ["fired"]
    for after in (expected, []):
        later = Watched(file, sends=sends)
        for frame in seconds([DARK] * 3):
            later.stream.push(frame)
        later.stream.finish()
        assert [each.state for each in later.alerts] == after


def test_states_that_cannot_be_read_are_a_warning(tmp_path):
    (tmp_path / "states.json").write_text("[")
    watched = Watched(file_of(f"bright, question: is it bright, {QUICK}", folder=tmp_path))
    assert "cannot be read" in watched.warnings[0]


def test_what_on_event_raises_is_a_warning(tmp_path):
    watched = Watched(file_of(f"bright, question: is it bright, {QUICK}", folder=tmp_path))
    watched.stream._reporter._on_event = lambda event: 1 / 0
    for frame in seconds([BRIGHT] * 3):
        watched.stream.push(frame)
    watched.stream.finish()
    assert watched.counts["bright"]["fired"] == 1
    assert watched.warnings == [
        "on_event raised ZeroDivisionError for alert bright (division by zero): the stream goes on"
    ]


# ---- masks and zones ----

LEFT = "[[0, 0], [0.5, 0], [0.5, 1], [0, 1]]"
RIGHT = "[[0.5, 0], [1, 0], [1, 1], [0.5, 1]]"


def test_a_privacy_mask_is_black_before_anything_sees_the_frame(tmp_path):
    file = file_of(
        "b, question: is it bright, fire: {above: 0.2, for: 1 of 1}, clear: {below: 0.1}",
        folder=tmp_path,
        stream=f"privacy_masks: [{LEFT}]",
    )
    watched = Watched(file)
    for frame in seconds([BRIGHT] * 2):
        watched.stream.push(frame)
    watched.stream.finish()
    for frame in watched.sessions[None].taken:
        assert not frame.image[:, :9].any()
        assert (frame.image[:, 9:] == BRIGHT).all()
    shown = np.asarray(Image.open(watched.alerts[0].picture))
    assert shown[:, :8].max() < 60 < 200 < shown[:, 10:].min()


def test_a_zone_is_all_that_its_alerts_see(tmp_path):
    file = file_of(
        f"left, question: is it bright, zone: left, {QUICK}",
        f"right, question: is it bright, zone: right, {QUICK}",
        "all, question: is it bright, fire: {above: 0.4, for: 1 of 1}, clear: {below: 0.1}",
        folder=tmp_path,
        stream=f"zones: {{left: {LEFT}, right: {RIGHT}}}",
    )
    watched = Watched(file)
    image = picture(0)
    image[:, :8] = 255
    for number in range(12):
        watched.stream.push(Frame(image, Fraction(number, 4), number))
    watched.stream.finish()
    left, right, whole = (watched.sessions[zone].taken[0].image for zone in ("left", "right", None))
    assert (left == image).all()
    assert not right.any()
    assert (whole == image).all()
    assert [(each.alert, each.zone) for each in watched.alerts] == [("all", None)]
    assert watched.alerts[0].probability == 0.5
    assert image[:, :8].min() == 255, "the caller's picture stays"


def test_other_questions_are_asked_of_the_whole_picture(tmp_path):
    zoned = f"left, question: is it bright, zone: left, {QUICK}"
    for others in ([], ["all, question: is it bright"]):
        watched = Watched(
            file_of(zoned, *others, folder=tmp_path, stream=f"zones: {{left: {LEFT}}}")
        )
        image = picture(0)
        image[:, 8:] = 255
        for number in range(4):
            watched.stream.push(Frame(image, Fraction(number, 4), number))
        if others:
            answer = watched.stream.submit(Question("what is it", watched.stream.now))
            assert answer.result().text == "brightness 0.50"
        else:
            with pytest.raises(QuestionError, match="each alert of stream front has a zone"):
                watched.stream.submit(Question("what is it"))
        watched.stream.finish()


def test_a_zone_is_drawn_on_the_evidence(tmp_path):
    file = file_of(
        "b, question: is it bright, zone: left, fire: {above: 0.4, for: 1 of 1}",
        folder=tmp_path,
        stream=f"zones: {{left: {LEFT}}}",
    )
    watched = Watched(file)
    for number in range(8):
        watched.stream.push(Frame(picture(BRIGHT, (120, 160)), Fraction(number, 4), number))
    watched.stream.finish()
    shown = np.asarray(Image.open(watched.alerts[0].picture)).astype(int)
    edge = shown[60, 78:82]
    assert (edge[:, 0] - edge[:, 1]).max() > 60, "a red line"
    assert shown[60, 120].min() > 230, "the rest of the frame is shown, too"


def test_a_picture_in_gpu_memory_is_refused(tmp_path):
    watched = Watched(file_of("b, question: is it bright", folder=tmp_path))
    with pytest.raises(ConfigError, match="alerts need NumPy arrays in host memory"):
        watched.stream.push(Frame(object(), Fraction(0), 0))


# ---- evidence and messages ----


def test_the_picture_is_the_newest_frame_that_the_answer_saw(tmp_path):
    watched = Watched(file_of(f"bright, question: is it bright, {QUICK}", folder=tmp_path))
    for frame in frames([*[10] * 4, 240, *[20] * 12]):
        watched.stream.push(frame)
    watched.stream.finish()
    fired = watched.alerts[0]
    assert fired.at == 1
    shown = np.asarray(Image.open(fired.picture))
    assert abs(shown.astype(int) - 240).max() <= 3
    sent = [(each.key, each.alert, each.stream, each.state) for each in watched.messages]
    assert sent == [(each.key, each.alert, each.stream, each.state) for each in watched.alerts]
    assert watched.messages[0].picture == Path(fired.picture).read_bytes()
    assert watched.messages[0].body["series"] == [[1.0, 0.941176]]
    assert watched.messages[1].picture is None


def test_the_picture_of_an_answer_that_comes_late_is_still_that_frame(tmp_path):
    watched = Watched(
        file_of(f"bright, question: is it bright, {QUICK}", folder=tmp_path),
        waits=False,
        live=True,
        held=True,
    )
    for frame in frames([*[10] * 4, 240, *[20] * 12]):
        watched.stream.push(frame)
    watched.sessions[None].held = False
    watched.sessions[None].answer_held()
    fired = watched.alerts[0]
    assert fired.at == 1
    assert abs(np.asarray(Image.open(fired.picture)).astype(int) - 240).max() <= 3


def test_a_clip_has_the_frames_before_and_after(tmp_path):
    """At their own times from the first one; rows and columns are even."""
    watched = Watched(
        file_of(
            f"bright, question: is it bright, clip: {{before: 1s, after: 2s}}, {QUICK}",
            folder=tmp_path,
        ),
        fps=None,
    )
    for frame in frames([*[10] * 8, *[240] * 24], size=(37, 49)):
        watched.stream.push(frame)
    watched.stream.finish()
    fired = watched.alerts[0]
    assert fired.at == 2
    with av.open(fired.clip) as clip:
        shown = [
            (float(each.time), each.to_ndarray(format="rgb24")) for each in clip.decode(video=0)
        ]
    assert [time for time, _ in shown] == [number / 4 for number in range(13)]
    assert [image.mean() > 120 for _, image in shown] == [False] * 4 + [True] * 9
    assert shown[0][1].shape == (36, 48, 3)


def test_a_clip_ends_with_its_stream(tmp_path):
    watched = Watched(
        file_of(f"b, question: is it bright, clip: {{after: 60s}}, {QUICK}", folder=tmp_path)
    )
    for frame in seconds([BRIGHT] * 3):
        watched.stream.push(frame)
    watched.stream.finish()
    with av.open(watched.alerts[0].clip) as clip:
        assert len(list(clip.decode(video=0))) == 7, "the last frame, too, which was not taken"


def test_evidence_that_cannot_be_written_is_a_warning(tmp_path):
    watched = Watched(file_of(f"bright, question: is it bright, {QUICK}", folder=tmp_path / "e"))
    shutil.rmtree(tmp_path / "e")
    for frame in seconds([BRIGHT] * 2):
        watched.stream.push(frame)
    watched.stream.finish()
    (fired,) = watched.alerts
    assert fired.picture is None
    assert Image.open(io.BytesIO(watched.messages[0].picture)).size == (16, 12)
    assert "the picture of an alert is missing" in watched.warnings[0]


def test_a_picture_that_cannot_be_made_is_a_warning(tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError("no memory")

    monkeypatch.setattr(alert_reporter, "evidence_picture", fail)
    watched = Watched(file_of(f"bright, question: is it bright, {QUICK}", folder=tmp_path))
    for frame in seconds([BRIGHT] * 2):
        watched.stream.push(frame)
    watched.stream.finish()
    assert [each.picture for each in watched.alerts] == [None]
    assert watched.warnings == ["the picture of an alert is missing: no memory"]


def test_evidence_is_taken_before_then_is_asked(tmp_path, monkeypatch):
    """Frames are kept for 10 seconds, and the answer comes after 30."""
    watched = Watched(
        file_of(
            "b, question: is it bright, then: what is it, clip: {before: 1s, after: 1s}, " + QUICK,
            folder=tmp_path,
        ),
        waits=False,
    )
    session = watched.sessions[None]
    submit, late = session.submit, Future()

    def keep_then(question, on_token=None):
        return late if question.text == "what is it" else submit(question)

    monkeypatch.setattr(session, "submit", keep_then)
    for frame in seconds([10, 10, BRIGHT, *[20] * 30]):
        watched.stream.push(frame)
    assert watched.alerts == []
    late.set_exception(MemoryError("no memory"))
    watched.stream.finish()
    fired = watched.alerts[0]
    assert (fired.at, fired.description) == (2, None)
    assert np.asarray(Image.open(fired.picture)).mean() > 240
    with av.open(fired.clip) as clip:
        times = [float(each.time) for each in clip.decode(video=0)]
    assert times[-1] <= 2
    assert all(
        stat.S_IMODE(Path(each).stat().st_mode) == 0o600 for each in (fired.picture, fired.clip)
    )


# ---- what was sent is noted ----


class Broken(Watched):
    """One whose delivery, or whose process, ends."""

    def __init__(self, file, how):
        super().__init__(file)
        if how == "refused":
            self.stream._reporter._send = self._refuse
        else:
            self.stream._reporter._states.note = lambda *_: None

    def _refuse(self, message):
        raise ConfigError("the delivery is closed")


@pytest.mark.parametrize("how", ["refused", "killed"])
def test_an_event_that_was_not_noted_comes_again(tmp_path, how):
    """With the same key, so that receivers take what they got as one."""
    file = file_of(f"bright, question: is it bright, {QUICK}", folder=tmp_path)
    keys = []
    for opened in (partial(Broken, how=how), Watched, Watched):
        watched = opened(file)
        for frame in seconds([BRIGHT] * 3):
            watched.stream.push(frame)
        watched.stream.finish()
        keys.append([each.key for each in watched.alerts])
    assert keys == [keys[0], keys[0], []]
    assert len(keys[0]) == 1


def test_keys_differ_between_changes_runs_and_folders(tmp_path):
    keys = []
    for folder in ("a", "a", "b"):
        file = file_of(f"bright, question: is it bright, {QUICK}", folder=tmp_path / folder)
        watched = Watched(file)
        for frame in seconds([BRIGHT, BRIGHT, DARK, DARK, BRIGHT, BRIGHT, DARK, DARK]):
            watched.stream.push(frame)
        watched.stream.finish()
        keys += [each.key for each in watched.messages]
    assert len(keys) == len(set(keys)) == 12
