"""What thinwire raises. All of it is a RuntimeError; docs/errors.md says who has to act on which."""


class Error(RuntimeError):
    """Base of every error of thinwire."""


class InvalidArgument(Error, ValueError):
    """The caller passed what cannot work; the text has the value and what would be right."""


class FileError(Error, OSError):
    """A file is missing, cannot be written, or its content is not what its format says."""

    # OSError would take the text for an error number.
    def __str__(self):
        return str(self.args[0]) if self.args else ""


class FrameError(Error):
    """Received bytes are damaged, truncated, or of another codec or step."""


class CommError(Error):
    """A peer or the network failed. `rank` is the peer at fault, or -1 where it is not known."""

    rank = -1
    operation = ""


class InternalError(Error):
    """An invariant of the library itself is broken: a bug in thinwire."""
