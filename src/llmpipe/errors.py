"""What can go wrong before the proxy serves. Each error is one clear line for a person; the CLI prints it and exits."""


class UsageError(Exception):
    """Something that the operator gave cannot work; the text says what, and what to do. Exit code 2."""
