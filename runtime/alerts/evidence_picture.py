"""The picture that shows an alert: the frame, with zones drawn on it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vicort.runtime.alerts.evidence_ring import encoded
from vicort.runtime.alerts.polygon import Polygon

OWN, OTHER = (255, 60, 60), (255, 255, 255)  # RGB: the alert's own zone, other ones
SHARE = 1 / 300  # width of a line, as a share of the frame's longer side


def evidence_picture(
    image: np.ndarray, zones: Mapping[str, Polygon], own: str | None = None
) -> bytes:
    """A JPEG file. image: [height, width, 3] uint8 RGB, with privacy masks. own: the zone of the
    alert."""
    from PIL import Image, ImageDraw  # late: only alerts that fire need it

    if not zones:
        return encoded(image)
    height, width = image.shape[:2]
    picture = Image.fromarray(image.copy())
    draw = ImageDraw.Draw(picture)
    line = max(1, round(max(height, width) * SHARE))
    for name, polygon in sorted(zones.items(), key=lambda zone: zone[0] == own):
        colour = OWN if name == own else OTHER
        points = [(x * (width - 1), y * (height - 1)) for x, y in polygon]
        draw.line([*points, points[0]], fill=colour, width=line)
        draw.text((points[0][0] + 2 * line, points[0][1] + 2 * line), name, fill=colour)
    return encoded(np.asarray(picture))
