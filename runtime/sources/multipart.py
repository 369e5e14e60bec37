"""JPEG pictures between boundary lines, as cameras send them."""

from __future__ import annotations

import av

FORMAT = "mpjpeg"  # FFmpeg's name
END = b"\xff\xd9"  # of a JPEG file


def without_false_damage(packet: av.Packet) -> av.Packet:
    """The packet, or one like it that is not flagged as damaged.

    FFmpeg flags the last picture of an answer, because no boundary follows it. It is whole if it
    has its end.
    """
    if not packet.is_corrupt or not packet.size:
        return packet
    data = bytes(packet)
    if not data.rstrip(b"\r\n").endswith(END):
        return packet
    whole = av.Packet(data)
    whole.pts, whole.dts, whole.time_base = packet.pts, packet.dts, packet.time_base
    return whole
