"""Training data: reels keep what their files show, and batches ask only what their streams show."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sizes import examples
from support.tiny_reels import MIXED, mixed_reel, reel_of

from vicort.export.tiny import reels as reels_module
from vicort.export.tiny.batches import (
    IGNORED,
    PLACES,
    Batch,
    BatchRecipe,
    Composer,
    Episode,
    by_length,
    episode_of,
    gather,
    glances,
    mirrored,
    sights,
)
from vicort.export.tiny.looks import look_without_photo
from vicort.export.tiny.model import MAX_POSITION
from vicort.export.tiny.reels import Reel, fill_pool, labels, load_reel, make_reel, save_reel
from vicort.export.tiny.tokenizer import PROMPT, VOCABULARY, make_tokenizer
from vicort.export.tiny.world import COLORS, SHAPES, WAYS, make_stream

SEEDS = st.integers(0, 10**6)
ASPECTS = st.sampled_from([0.5625, 1.0, 4 / 3, 16 / 9])
SHIFTS = st.sampled_from([(0.5, 0.5), (0.0, 1.0), (0.3, 0.9)])


def same(one: Reel, other: Reel) -> bool:
    return (
        np.array_equal(one.units, other.units)
        and np.array_equal(one.there, other.there)
        and np.array_equal(one.times, other.times)
        and one.things == other.things
        and one.aspect == other.aspect
        and np.allclose(one.shift, other.shift)
    )


# ---- reels


def test_a_reel_comes_back_from_the_disk_as_it_was(tmp_path: Path) -> None:
    reel = mixed_reel(3, shift=(0.2, 0.7))
    save_reel(reel, tmp_path / "000003.json")
    assert {path.name for path in tmp_path.iterdir()} == {"000003.json", "000003.npy"}
    loaded = load_reel(tmp_path / "000003.json")
    assert same(loaded, reel)
    assert (loaded.units.dtype, loaded.there.dtype) == (np.uint8, np.int16)


@pytest.fixture
def without_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reels_module, "random_look", look_without_photo)


@pytest.mark.usefixtures("without_photographs")
def test_a_reel_follows_from_its_seed_and_its_labels_from_its_things() -> None:
    reel, again = make_reel(1), make_reel(1)
    assert same(reel, again)
    units = len(reel.units)
    assert reel.units.shape == (units, 2, 112, 112, 3)
    assert reel.there.shape == (units, 2, 2)
    assert reel.times.shape == (units, 2)
    assert (np.diff(reel.times.ravel()[:-1]) > 0).all()
    for time, row in zip(reel.times.ravel(), reel.there.reshape(-1, 2), strict=True):
        shown = {k for k, thing in enumerate(reel.things) if thing.start <= time < thing.end}
        assert {int(k) for k in row if k >= 0} == shown


@pytest.mark.usefixtures("without_photographs")
def test_a_pool_is_filled_once(tmp_path: Path) -> None:
    fill_pool(tmp_path, 4, 1)
    first = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert {*first} == {"000004.json", "000004.npy"}
    fill_pool(tmp_path, 4, 1)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == first


@pytest.mark.slow
def test_its_command_says_what_it_takes() -> None:
    command = [sys.executable, "-m", "vicort.export.tiny.reels", "--help"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "--first" in said


@given(seed=SEEDS, aspect=ASPECTS, shift=SHIFTS)
@settings(max_examples=examples(40))
def test_a_mirrored_reel_has_left_and_right_exchanged(
    seed: int, aspect: float, shift: tuple[float, float]
) -> None:
    stream = make_stream(seed, 6, aspect, plan=MIXED)
    reel = reel_of(stream, shift=shift)
    rng = np.random.default_rng(seed)
    reel = replace(reel, units=rng.integers(0, 256, reel.units.shape, np.uint8))
    other = mirrored(reel)
    assert same(mirrored(other), reel)
    np.testing.assert_array_equal(other.units, np.flip(reel.units, 3))
    # what is there from left to right follows from where the mirrored things are
    np.testing.assert_array_equal(
        labels(replace(stream, things=other.things), reel.times.ravel().tolist()), other.there
    )
    ways = {"left": "right", "right": "left", "up": "up", "down": "down", "nowhere": "nowhere"}
    for thing, turned in zip(reel.things, other.things, strict=True):
        assert turned.way == ways[thing.way]
        for time in (thing.start, thing.end):
            (x, y), (u, v) = thing.center(time), turned.center(time)
            assert (u, v) == pytest.approx((-x, y))


def test_a_mirrored_drawn_reel_shows_the_mirrored_things() -> None:
    """Of the painter: a thing drawn where the mirrored reel says that it is."""
    reel = mixed_reel(8, objects=1, aspect=16 / 9, drawn=True)
    for each in (reel, mirrored(reel)):
        (unit, frame) = np.argwhere(each.there[..., 0] == 0)[0]
        x, y = each.things[0].center(each.times[unit, frame])
        column, row = round(56 + x * 63), round(56 + y * 63)
        around = each.units[unit, frame, row - 3 : row + 4, column - 3 : column + 4]
        nothing = each.units[0, 0, row - 3 : row + 4, column - 3 : column + 4]
        assert np.abs(around.astype(int) - nothing).mean() > 30


def test_rows_of_features_are_not_mirrored() -> None:
    rows = np.arange(7)
    assert mirrored(replace(mixed_reel(1), units=rows)).units is rows


# ---- what single units show


@given(seed=SEEDS, aspect=ASPECTS, shift=SHIFTS)
@settings(max_examples=examples(30))
def test_sights_are_what_the_frames_show(
    seed: int, aspect: float, shift: tuple[float, float]
) -> None:
    stream = make_stream(seed, 5, aspect, plan=MIXED)
    reel = reel_of(stream, shift=shift)
    found = sights(reel)
    assert found.shape == (len(reel.units), 2, 7)
    width, height = min(1.0, aspect) * 112, min(1.0, 1 / aspect) * 112  # of the picture in its box
    for there, row in zip(reel.there, found, strict=True):
        both = {*there[0].tolist()} & {*there[1].tolist()}
        for left, way in zip(there[:, 0], row[:, 4], strict=True):
            known = left >= 0 and left in both
            assert way == (1 + list(WAYS).index(reel.things[left].way) if known else 0)
    for time, row in zip(reel.times.ravel(), found.reshape(-1, 7), strict=True):
        there = stream.at(float(time))
        numbers = [(SHAPES.index(t.shape) + 1, COLORS.index(t.color) + 1) for t in there]
        numbers += [(0, 0)] * (2 - len(there))
        assert (tuple(row[:2]), tuple(row[5:])) == tuple(numbers)
        if not there:
            assert tuple(row[2:4]) == (0, 0)
            continue
        x, y = there[0].center(float(time))
        pixels = height * x + width / 2, height * y + height / 2
        column = (112 - width) * shift[0] + pixels[0]
        line = (112 - height) * shift[1] + pixels[1]
        for place, step in ((column, row[2]), (line, row[3])):
            assert step - 1 - 1e-6 <= place / 112 * PLACES <= step + 1e-6


def test_glances_are_of_every_reel_and_rarely_empty() -> None:
    reels = [mixed_reel(seed) for seed in (1, 2)]
    units, shown = glances(np.random.default_rng(0), reels, 200)
    assert units.shape == (400, 2, 112, 112, 3)
    assert shown.shape == (400, 2, 7)
    whole = [sights(reel) for reel in reels]
    for index, (unit, sight) in enumerate(zip(units, shown, strict=True)):
        of = unit[:, 0, 0, 0]  # the row that each frame comes from
        expected = whole[index // 200][of, [0, 1]]
        if of[0] != of[1]:
            expected = np.where(np.arange(7) == 4, 0, expected)  # nothing goes any way
        np.testing.assert_array_equal(sight, expected)
    empty = np.mean([(reel.there == -1).all((1, 2)).mean() for reel in reels])
    assert (shown == 0).all((1, 2)).mean() < 0.6 * empty


def test_glances_often_show_a_change_and_never_one_thing_at_two_moments() -> None:
    reel = mixed_reel(3, objects=6)
    units, _ = glances(np.random.default_rng(0), [reel], 2000)
    rows = units[:, :, 0, 0, 0].astype(int)
    changed = rows[rows[:, 0] != rows[:, 1]]
    assert 0.2 < len(changed) / len(rows) < 0.45
    assert len({*map(tuple, changed)}) > 50
    for first, second in changed:
        both = {*reel.there[first, 0].tolist()} & {*reel.there[second, 1].tolist()}
        assert both <= {-1}


def test_glances_are_often_of_small_things() -> None:
    reel = mixed_reel(4, objects=6)
    things = tuple(replace(thing, radius=0.14, growth=1.0) for thing in reel.things[:3])
    things += tuple(replace(thing, radius=0.3, growth=1.0) for thing in reel.things[3:])
    reel = replace(reel, things=things, aspect=1.0)
    units, _ = glances(np.random.default_rng(0), [reel], 2000)
    drawn = np.bincount(units[:, 0, 0, 0, 0].astype(int), minlength=len(reel.units))
    pairs = (reel.there >= 0).sum((1, 2)) == 2
    shown = np.array([[(row == k).any() for k in range(6)] for row in reel.there])
    small, large = (pairs & shown[:, part].any(1) for part in (slice(0, 3), slice(3, 6)))
    assert drawn[small & ~large].mean() > 1.8 * drawn[large & ~small].mean()


# ---- episodes

ANY = BatchRecipe(
    streams=3,
    questions=5,
    things=(0, 4),
    empties=(0, 5),
    longest=12,
    far=0.5,
    bounded=0.5,
    drops=0.5,
    retrieval=0.5,
    turns=0.4,
)


@given(
    seed=SEEDS,
    windows=st.sampled_from([0.0, 1.0]),
    again=st.sampled_from([0.0, 1.0]),
    one_look=st.sampled_from([0.0, 1.0]),
)
@settings(max_examples=examples(60))
def test_an_episode_shows_its_things_in_their_order(
    seed: int, windows: float, again: float, one_look: float
) -> None:
    rng = np.random.default_rng(seed)
    reels = [mixed_reel(seed + k) for k in range(3)]
    recipe = replace(ANY, windows=windows, again=again, one_look=one_look)
    episode = episode_of(rng, reels, recipe)
    assert episode.there.shape == (len(episode.units), 2, 2)
    assert len(episode.times) == len(episode.units) > 0
    assert (np.diff(episode.times) > 0).all()
    assert episode.times.min() >= 0
    assert episode.times.max() < MAX_POSITION
    assert {int(k) for k in np.unique(episode.there)} - {-1} == {*range(len(episode.things))}
    first_shown = [
        np.flatnonzero((episode.there == k).any((1, 2)))[0] for k in range(len(episode.things))
    ]
    assert first_shown == sorted(first_shown)
    looks = [(thing.shape, thing.color) for thing in episode.things]
    assert len({*looks}) == len(looks)
    if not windows and not again:
        assert len({shape for shape, _ in looks}) == len(looks)
    check_units(episode, reels)


def check_units(episode: Episode, reels: list[Reel]) -> None:
    """Every unit shows in its reel what the episode says."""
    starts = np.cumsum([0, *(len(reel.units) for reel in reels)])
    for row, there in zip(episode.units, episode.there, strict=True):
        r = int(np.searchsorted(starts, row, side="right")) - 1
        expected = reels[r].there[row - starts[r]]
        for shown, really in zip(there.ravel(), expected.ravel(), strict=True):
            assert (shown < 0) == (really < 0)
            assert shown < 0 or episode.things[shown] == reels[r].things[really]


@given(seed=SEEDS)
@settings(max_examples=examples(20))
def test_a_window_is_a_section_of_one_reel_in_its_time(seed: int) -> None:
    reels = [mixed_reel(seed, step=step) for step in (0.25, 0.5, 1.0)]
    episode = episode_of(np.random.default_rng(seed), reels, replace(ANY, windows=1.0, far=0.0))
    assert (np.diff(episode.units) == 1).all()
    assert len(episode.units) <= ANY.longest
    starts = np.cumsum([0, *(len(reel.units) for reel in reels)])
    r = int(np.searchsorted(starts, episode.units[0], side="right")) - 1
    seconds = reels[r].times[episode.units - starts[r], 0]
    if r:  # a unit a second, or one every two seconds
        np.testing.assert_array_equal(episode.times, seconds - seconds[0])


@given(seed=SEEDS)
@settings(max_examples=examples(20))
def test_a_stream_of_one_look_is_of_one_reel_that_has_empty_units(seed: int) -> None:
    crowded = mixed_reel(seed)
    crowded = replace(crowded, there=np.zeros_like(crowded.there))  # none is empty
    reels = [crowded, *(mixed_reel(seed + k) for k in (1, 2))]
    recipe = replace(ANY, windows=0.0, one_look=1.0, things=(0, 4))
    episode = episode_of(np.random.default_rng(seed), reels, recipe)
    starts = np.cumsum([0, *(len(reel.units) for reel in reels)])
    of = {*(np.searchsorted(starts, episode.units, side="right") - 1).tolist()}
    assert of in ({1}, {2})
    only_crowded = episode_of(
        np.random.default_rng(seed), [crowded], replace(recipe, things=(1, 4))
    )
    assert len(only_crowded.things) == 1


# ---- batches


def reels_of(seed: int) -> list[Reel]:
    return [mixed_reel(seed + k, objects=4) for k in range(2)]


def composed(seed: int, recipe: BatchRecipe) -> tuple[Batch, list[Episode]]:
    rng = np.random.default_rng(seed)
    reels = reels_of(seed)
    units, episodes = gather(rng, reels, recipe)
    features = rng.standard_normal((len(units), 16, 8)).astype(np.float32)
    return Composer(recipe).compose(rng, episodes, features), episodes


@given(seed=SEEDS)
@settings(max_examples=examples(30))
def test_batches_keep_the_contract_of_positions_and_forks(seed: int) -> None:
    """t rises with the unit, rows and columns come from the grid, text goes on after the maximum,
    and forks do not see each other."""
    batch, episodes = composed(seed, replace(ANY, far=0.0, retrieval=0.0, turns=0.0))
    for row, episode in enumerate(episodes):
        vision = np.flatnonzero(batch.feature[row] >= 0)
        t, h, w = batch.positions[:, row]
        unit, cell = np.divmod(batch.feature[row][vision], 16)
        np.testing.assert_array_equal(h[vision], 2 + cell // 4)
        np.testing.assert_array_equal(w[vision], 2 + cell % 4)
        times = dict(zip(episode.units.tolist(), episode.times.tolist(), strict=False))
        if len(times) == len(episode.units):  # no unit is there twice
            np.testing.assert_array_equal(t[vision], 2 + np.array([times[u] for u in unit]))
        end = VOCABULARY.index("<|vision_end|>")
        starts = np.flatnonzero(batch.tokens[row] == end)
        assert len(starts)
        assert (
            batch.positions[:, row, starts]
            == max(t[vision].max(), h[vision].max(), w[vision].max()) + 1
        ).all()
        mask = batch.mask[row, 0]
        assert not np.triu(mask, 1).any()
        for one, other in pairwise(starts):
            assert not mask[other:, one : one + 1].any()
        assert mask[starts][:, vision].any(1).all()


@given(seed=SEEDS, groups=st.integers(1, 5))
@settings(max_examples=examples(20))
def test_streams_of_similar_lengths_are_put_together(seed: int, groups: int) -> None:
    batch, _ = composed(seed, ANY)

    def streams(each: Batch) -> list[tuple[list[int], ...]]:
        found = []
        for row in range(len(each.tokens)):
            size = int(np.diagonal(each.mask[row, 0]).sum())
            cells = [each.tokens, each.feature, *each.positions, each.labels, each.kinds]
            assert (each.feature[row, size:] == -1).all()
            assert (each.labels[row, size:] == IGNORED).all()
            mask = each.mask[row, 0, :size, :size]
            found.append((*(array[row, :size].tolist() for array in cells), mask.tolist()))
        return found

    parts = by_length(batch, groups)
    assert sorted(each for part in parts for each in streams(part)) == sorted(streams(batch))
    lengths = [[len(tokens) for tokens, *_ in streams(part)] for part in parts]
    for sizes, part in zip(lengths, parts, strict=True):
        assert part.tokens.shape[1] % 64 == 0
        assert 0 <= part.tokens.shape[1] - max(sizes) < 64
    for shorter, longer in pairwise(lengths):
        assert max(shorter) <= min(longer)


@given(seed=SEEDS)
@settings(max_examples=examples(30))
def test_ingest_sees_the_last_chunks_and_questions_see_the_chunks_that_were_read(seed: int) -> None:
    batch, _ = composed(seed, replace(ANY, bounded=1.0, retrieval=1.0, drops=0.0))
    prompt = len(make_tokenizer().encode(PROMPT).ids)
    for row in range(len(batch.tokens)):
        mask, feature = batch.mask[row, 0], batch.feature[row]
        vision = np.flatnonzero(feature >= 0)
        text = np.flatnonzero((feature < 0) & (batch.labels[row] != IGNORED))
        assert mask[vision][:, :prompt].all()
        # the chunks of ingest: a row sees whole chunks before its own and its own up to itself
        first_seen = np.array([vision[mask[cell, vision]][0] for cell in vision])
        assert (np.diff(first_seen) >= 0).all()
        for cell, first in zip(vision, first_seen, strict=True):
            np.testing.assert_array_equal(mask[cell, vision], (vision >= first) & (vision <= cell))
        read = mask[text][:, vision]
        assert (read == read[0]).all()  # the same for all questions of a stream
        assert read[0].any()
        whole_units = read[0].reshape(-1, 16)
        assert (whole_units.all(1) | ~whole_units.any(1)).all()


@given(seed=SEEDS)
@settings(max_examples=examples(40))
def test_what_is_asked_can_be_seen(seed: int) -> None:
    """The things that an answer is about are in the units that the question sees."""
    recipe = replace(ANY, retrieval=1.0, drops=0.5, turns=0.0)
    batch, episodes = composed(seed, recipe)
    for row, episode in enumerate(episodes):
        there = dict(zip(episode.units.tolist(), episode.there, strict=True))
        vision = np.flatnonzero(batch.feature[row] >= 0)
        for question, answer, start in asked_in(batch, row):
            read = batch.feature[row][vision[batch.mask[row, 0, start][vision]]] // 16
            shown = {int(k) for unit in read.tolist() for k in there[unit].ravel() if k >= 0}
            seen = [episode.things[k] for k in shown]
            words = question.split()
            if words[:2] == ["what", "color"] and answer != "none" and len(words) == 5:
                assert [t.color for t in seen if t.shape == words[4]] == [answer]
            elif words[:2] == ["what", "shape"] and answer != "none":
                assert [t.shape for t in seen if t.color == words[3]] == [answer]
            elif words[:2] == ["was", "there"] and answer == "yes":
                assert words[3] in {t.shape for t in seen}
            elif words[:2] == ["which", "way"]:
                (index,) = [k for k in shown if episode.things[k].shape == words[4]]
                assert episode.things[index].way == answer
                check_going(index, episode, reels_of(seed), {*read.tolist()})
            elif words[:2] == ["how", "many"] or words[:2] == ["which", "came"]:
                assert {*read.tolist()} == {*episode.units.tolist()}


@given(seed=SEEDS)
@settings(max_examples=examples(20))
def test_nothing_asks_which_way_a_thing_went_that_hardly_moved_while_it_was_seen(seed: int) -> None:
    rng, reels = np.random.default_rng(seed), reels_of(seed)
    recipe = BatchRecipe(questions=60, windows=1.0)
    episode = episode_of(rng, reels, recipe)
    features = rng.standard_normal((sum(map(length, reels)), 16, 8)).astype(np.float32)
    slower = replace(episode, gone=episode.gone * 0.02)
    for each, moving in ((episode, True), (slower, False), (replace(episode, gone=None), None)):
        asked = asked_in(Composer(recipe).compose(rng, [each], features), 0)
        answers = [answer for question, answer, _ in asked if question.startswith("which way")]
        assert moving is not None or not answers
        assert moving or {*answers} <= {"nowhere"}


@given(seed=SEEDS)
@settings(max_examples=examples(20))
def test_a_stream_of_which_nothing_certain_was_read_is_read_whole(seed: int) -> None:
    """All shapes came, and a question sees two units of them: neither what was there nor what was
    not is sure."""
    rng, reels = np.random.default_rng(seed), [mixed_reel(seed, objects=12)]
    recipe = replace(ANY, retrieval=1.0, windows=1.0, longest=400, drops=0.0, turns=0.0)
    episode = Episode(
        np.arange(len(reels[0].units)),
        np.arange(len(reels[0].units)),
        reels[0].there,
        reels[0].things,
    )
    features = rng.standard_normal((len(reels[0].units), 16, 8)).astype(np.float32)
    batch = Composer(recipe).compose(rng, [episode] * 40, features)
    assert all(asked_in(batch, row) for row in range(40))


def check_going(number: int, episode: Episode, reels: list[Reel], read: set[int]) -> None:
    """The frames of these units show the thing often enough, and in places far enough apart."""
    thing, places, starts = episode.things[number], [], np.cumsum([0, *map(length, reels)])
    for row, there in zip(episode.units.tolist(), episode.there, strict=True):
        r = int(np.searchsorted(starts, row, side="right")) - 1
        for frame in np.flatnonzero((there == number).any(1)) if row in read else ():
            time = float(reels[r].times[row - starts[r], frame])
            places.append(np.array(thing.center(time)) / max(1.0, reels[r].aspect))
    assert len(places) >= 3
    if thing.way != "nowhere":
        assert max(np.abs(one - other).max() for one in places for other in places) >= 0.05


def length(reel: Reel) -> int:
    return len(reel.units)


def asked_in(batch: Batch, row: int) -> list[tuple[str, str, int]]:
    """(question, answer, cell of the question's last word) of the forks of one stream."""
    tokens = batch.tokens[row]
    end, stop = VOCABULARY.index("<|vision_end|>"), VOCABULARY.index("<|im_end|>")
    found = []
    for start in np.flatnonzero(tokens == end):
        words = []
        for cell in range(start + 1, len(tokens)):
            if tokens[cell] == stop:
                break
            words.append(cell)
        answers = [cell for cell in words if batch.labels[row, cell - 1] == tokens[cell]]
        text = [VOCABULARY[tokens[cell]] for cell in words if cell not in answers]
        if text[1:2] == ["is"] and text[0] == "what" and len(text) > 2 and text[2] != "there":
            text[1] = "was"
        answer = " ".join(VOCABULARY[tokens[cell]] for cell in answers)
        found.append((" ".join(text).replace("what color is", "what color was"), answer, words[0]))
    return found
