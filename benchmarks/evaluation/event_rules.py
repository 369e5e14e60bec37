"""Credits of E.T. Bench (arXiv 2409.18111), from a reply's text to 0…1.

The public evaluation/compute_metrics.py is with its data; these rules follow copies of it. Overlaps
are computed in fp32, as there. A reply without a readable time has no credit; there, `evs` leaves
such replies out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import numpy as np

from vicort.benchmarks.evaluation.items import Reply

THRESHOLDS = (0.1, 0.3, 0.5, 0.7)  # of the overlap of two spans
BINS = 1000  # seconds that `evs` counts
NUMBER = r"(\d+\.*\d*)"
SIGNED = re.compile(r"[-+]?\d*\.\d+|[-+]?\d+")

Span = tuple[float, float]  # seconds
FARTHEST = 1e9  # seconds: larger numbers of a reply count as this, which is after any video


def spans_of(text: str) -> list[Span]:
    """The spans that a reply names: "2.5 - 4.8"; without one, "2.5 to 4.8"; without one, the first
    numbers of the sentences about a start, an end or a happening, two by two. Each with its start
    first; empty = none, or a number that is none, such as 1..5."""
    text = text.lower()
    found = re.findall(rf"{NUMBER}\s*-\s*{NUMBER}", text)
    found = found or re.findall(rf"{NUMBER}\s* to \s*{NUMBER}", text)
    if not found:
        about = [
            sentence
            for sentence in re.split(r"[!?\n]", text)
            if re.search("start|end|happen", sentence)
        ]
        first = [re.search(r"\b(?:\d+\.\d+|\d+)\b", sentence) for sentence in about]
        said = [match[0] for match in first if match]
        found = list(zip(said[::2], said[1::2], strict=False))
    try:
        pairs = [(min(float(one), FARTHEST), min(float(other), FARTHEST)) for one, other in found]
    except ValueError:
        return []
    return [(min(pair), max(pair)) for pair in pairs]


def overlaps(truths: Sequence[Span], said: Sequence[Span]) -> np.ndarray:
    """Intersection over union [truths, said] in fp32; 0 where the union is empty."""
    one, other = (np.array(spans, np.float32).reshape(-1, 2) for spans in (truths, said))
    start = np.maximum(one[:, None, 0], other[None, :, 0])
    end = np.minimum(one[:, None, 1], other[None, :, 1])
    shared = np.clip(end - start, 0, None)
    lengths = (one[:, 1] - one[:, 0])[:, None] + (other[:, 1] - other[:, 0])[None]
    union = lengths - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def first_span(truth: str, replies: Sequence[Reply]) -> float:
    """tvg, epm: the share of thresholds that the overlap of the first span reaches. truth: a span
    as JSON."""
    said = spans_of(replies[-1].text)[:1]
    return _reached(float(overlaps([json.loads(truth)], said).max(initial=0)))


def first_span_of_any(truth: str, replies: Sequence[Reply]) -> float:
    """tem: the same with the best of several right spans. truth: a list of spans as JSON."""
    said = spans_of(replies[-1].text)[:1]
    return _reached(float(overlaps(json.loads(truth), said).max(initial=0)))


def all_spans(truth: str, replies: Sequence[Reply]) -> float:
    """tal: F1 of the spans that reach a threshold with one of the other side, mean over
    thresholds."""
    said = spans_of(replies[-1].text)
    if not said:
        return 0.0
    overlap = overlaps(json.loads(truth), said)
    scores = []
    for threshold in THRESHOLDS:
        recall = float((overlap.max(axis=1) >= threshold).mean())
        precision = float((overlap.max(axis=0) >= threshold).mean())
        scores.append(_f1(precision, recall))
    return float(np.mean(scores))


def seconds_in_common(truth: str, replies: Sequence[Reply]) -> float:
    """evs: F1 over seconds, spans rounded to whole ones."""
    right, said = (_bins(spans) for spans in (json.loads(truth), spans_of(replies[-1].text)))
    hits = int((right & said).sum())
    return _f1(hits / int(said.sum()), hits / int(right.sum())) if hits else 0.0


def moment_within(truth: str, replies: Sequence[Reply]) -> float:
    """vhd: whether the first number lies in a right span. truth: a list of spans as JSON."""
    found = SIGNED.search(replies[-1].text)
    if not found:
        return 0.0
    moment = float(found[0])
    return float(any(start <= moment <= end for start, end in json.loads(truth)))


def _reached(overlap: float) -> float:
    return sum(overlap >= threshold for threshold in THRESHOLDS) / len(THRESHOLDS)


def _bins(spans: Sequence[Span]) -> np.ndarray:
    """Whether each second is in a span, [BINS] bool."""
    bins = np.zeros(BINS, bool)
    for start, end in spans:
        bins[max(0, round(start)) : round(end)] = True
    return bins


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
