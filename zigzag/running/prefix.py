"""What two texts share."""


def shared_prefix(old: list[int], new: list[int]) -> int:
    """Length of the common prefix, looked for from its end, where texts differ."""
    most = shared = min(len(old), len(new))
    back = 1
    while old[:shared] != new[:shared]:
        shared, back = max(0, shared - back), back * 2
    while shared < most and old[shared] == new[shared]:
        shared += 1
    return shared
