"""The errors that a user can cause or mend.

Each carries one message that names the file, line, key or shard, says what was expected and what to do.
The command line prints the message and exits with `exit_code`; a traceback appears only under `--debug`.
Anything else that escapes is a defect of Qianyi.
"""


class QianyiError(Exception):
    """Base of every expected error."""

    exit_code = 1


class ConfigError(QianyiError):
    """The recipe, an override or their combination is wrong."""

    exit_code = 2


class DataError(QianyiError):
    """A corpus, tokenizer or token shard is missing, unreadable, empty or corrupt."""


class CheckpointError(QianyiError):
    """A checkpoint is missing, damaged or does not match the recipe."""


class ResourceError(QianyiError):
    """The machine lacks something: devices, disk space, memory."""


class StoppedError(QianyiError):
    """Ctrl-C; what was finished is kept, and the same command goes on."""

    exit_code = 130
