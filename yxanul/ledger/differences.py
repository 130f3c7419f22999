"""Where configurations differ."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def differences(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[str | None]]:
    """The dotted keys that are not the same in all configurations, with their values as text; None where one is not."""
    flat = [dict(_flat(config)) for config in configs]
    keys = dict.fromkeys(key for each in flat for key in each)  # in their order
    values = {key: [each.get(key) for each in flat] for key in keys}
    return {key: found for key, found in values.items() if len(set(found)) > 1}


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys of a configuration and their values as text; places in lists count as keys."""
    if isinstance(value, Mapping | list) and value:
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for name, inner in items:
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, value if isinstance(value, str) else json.dumps(value, default=str)
