"""Names of files and folders that every system allows: what is named on one machine is copied to others."""

from __future__ import annotations

import re

FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f]+')
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Names of devices on Windows, with any suffix."""


def portable_name(name: str) -> str:
    """Return a name with hyphens for what Windows forbids.

    >>> portable_name("Portal:Contents"), portable_name("aux"), portable_name("Mr.")
    ('Portal-Contents', 'aux_', 'Mr')
    """
    name = FORBIDDEN.sub("-", name).rstrip(". ")
    return (f"{name}_" if RESERVED.fullmatch(name) else name) or "text"
