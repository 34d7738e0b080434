"""Positions in a context, in buckets that double."""


def position_bucket(position: int, alone: int = 4) -> str:
    """Name of the bucket: of positions below `alone` their own, then 4-7, 8-15 and so on."""
    if position < alone:
        return str(position)
    low = 1 << (position.bit_length() - 1)
    return f"{low}-{2 * low - 1}" if low > 1 else "1"
