"""Characters that show nothing, or make text look like other text ("Trojan Source", CVE-2021-42574)."""

from __future__ import annotations

import re

_HALVES = r"[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]"
UNSEEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff]|" + _HALVES)
"""Control characters but tab and line ends, overrides of the writing direction, byte-order marks and halves of
surrogate pairs. Plain direction marks and joiners are part of some scripts and stay."""
_NOT_IN_A_NAME = re.compile(rf"[\t\n\r\u2028\u2029]|{UNSEEN.pattern}")


MISLEADING = re.compile(r"[\x00\u202d\u202e]|" + _HALVES)
"""Those that no prompt of real people holds: data from elsewhere has many of the others by accident."""


MAX_NAME = 200
"""Characters of an id that data gives, e.g. a prompt's."""


def fault_of_name(name: str) -> str | None:
    """Why such an id cannot be one: it is one line of visible text; None where it can."""
    if not name.strip():
        return "is empty"
    if len(name) > MAX_NAME:
        return f"has more than {MAX_NAME} characters"
    if unseen := unseen_in(name, _NOT_IN_A_NAME):
        return f"holds the unseen character {unseen}"
    return None


def unseen_in(text: str, among: re.Pattern[str] = UNSEEN) -> str | None:
    """The first such character as `U+202E`; None without one."""
    found = among.search(text)
    return f"U+{ord(found[0]):04X}" if found else None
