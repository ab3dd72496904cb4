"""Which of a test's cases `make test` runs: those that have each value of an option at least once
beside each value of every other one, and each combination of TOGETHER.

The options of a test are the arguments of its marks `parametrize`, and of its fixtures; those that
come as one dictionary count one by one.
"""

import itertools

TOGETHER = ("dtype", "pairing", "estimator")


def chosen(items):
    """A part of the collected tests, in their order."""
    groups = {}
    for item in items:
        groups.setdefault(item.nodeid.partition("[")[0], []).append(item)
    kept = set()
    for group in groups.values():
        kept.update(group[i] for i in cover([options_of(item) for item in group]))
    return [item for item in items if item in kept]


def options_of(item):
    """By name, which of its values: they are those of one list, whatever they are."""
    found = {}
    for name, value in item.callspec.params.items() if hasattr(item, "callspec") else ():
        found.update(value if isinstance(value, dict) else {name: value})
    return {name: id(value) for name, value in found.items()}


def cover(rows):
    """Numbers of the rows to keep: again and again that with the most that no other one has yet,
    the first of several."""
    wanted = [_meetings(row) for row in rows]
    missing = set().union(*wanted)
    found = []
    while missing:
        best = max(range(len(rows)), key=lambda i: len(wanted[i] & missing))
        missing -= wanted[best]
        found.append(best)
    return sorted(found)


def _meetings(row):
    names = itertools.combinations(row, min(2, len(row)))
    return {tuple((name, row[name]) for name in some if name in row) for some in (*names, TOGETHER)}
