"Checks of what a user gives: one table at each public door, counts, choices by name, and libraries to install"

import operator
from contextlib import contextmanager

__all__ = ['refuse', 'as_count', 'choose', 'needs']


def refuse(
    wrong: dict,  # Message -> whether it applies; each says what was given, what is wanted and what to do
):
    "Raises a ValueError with the first message that applies"
    for message, applies in wrong.items():
        if applies: raise ValueError(message)


def as_count(
    value,  # What the caller gave: an integer of any kind
    name: str,  # The argument's name
    hint: str = '',  # What else to say in an error
) -> int:  # 1 or more
    "A count; a ValueError if it is not an integer or less than 1"
    try: count = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError: count = 0
    if count < 1: raise ValueError(f'{name}={value!r}: a whole number of 1 or more wanted{hint}')
    return count


def choose(
    value: str,  # What the caller gave
    allowed,  # What there is
    name: str,  # The argument's name
):
    "Checks that `value` is one of the choices; a ValueError lists them"
    if value not in allowed: raise ValueError(f'{name}={value!r}: use one of {", ".join(allowed)}')


@contextmanager
def needs(
    message: str,  # What is missing, what for, and how to install it
):
    "Inside, imports of libraries that are not always installed; an ImportError says the message"
    try: yield
    except ImportError as e: raise ImportError(message) from e
