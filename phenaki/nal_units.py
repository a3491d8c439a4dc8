"""The outer form of H.264 and H.265 frames in MP4 and Matroska: damage that a decoder hides can often be seen here.

A packet is a row of units, each behind its length. By the standards (H.264 7.3.1 and 7.4.1, H.265 7.3.1.1 and 7.4.2) the
bytes 00 00 00, 00 00 01 and 00 00 02 never stand inside a unit, and none ends with 00: a sector of zeros always breaks that.
"""

FORBIDDEN = (b"\0\0\0", b"\0\0\1", b"\0\0\2")


def length_size(codec: str, extradata: bytes | None) -> int:
    """Bytes of a unit's length as the stream's header (avcC, hvcC) gives it; 0 where units are not counted in this way."""
    places = {"h264": (4, 7), "hevc": (21, 23)}  # where the size stands, and the least length of such a header
    place, least = places.get(codec, (0, 0))
    if not place or extradata is None or len(extradata) < least or extradata[0] != 1:
        return 0
    return 1 + (extradata[place] & 3)


def damage_of(packet: bytes, length_size: int) -> str | None:
    """What is wrong with a packet; None where it has the form of one."""
    at = 0
    while at < len(packet):
        start = at + length_size
        length = int.from_bytes(packet[at:start], "big")
        at = start + length
        if length == 0 or at > len(packet):
            return f"a unit of {length} bytes where {max(len(packet) - start, 0)} are left"
        unit = packet[start:at]
        if unit[-1] == 0 or any(mark in unit for mark in FORBIDDEN):
            return "zeros inside a unit"
    return None
