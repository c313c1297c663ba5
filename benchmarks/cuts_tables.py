from typing import Any

WidthResult = dict[str, Any]


def write_tables(*a):
    return []
