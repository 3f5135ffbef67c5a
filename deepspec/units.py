"""Sizes for people, the same in every text: powers of 1000, as disks and GPUs are sold. JSON has whole bytes."""


def in_units(num_bytes: float) -> str:
    """A number of bytes in the unit that fits it."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(num_bytes) < 1000:
            return f"{num_bytes:,.1f} {unit}" if unit != "B" else f"{num_bytes:,.0f} B"
        num_bytes /= 1000
    return f"{num_bytes:,.1f} TB"
