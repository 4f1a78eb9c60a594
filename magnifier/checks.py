"Checks of what a user gives, as one table at each public door"

__all__ = ['refuse']


def refuse(
    wrong: dict,  # Message -> whether it applies; each says what was given, what is wanted and what to do
    error: type = ValueError,  # Raised with the first message that applies
):
    "Raises an error if something is wrong"
    for message, applies in wrong.items():
        if applies: raise error(message)
