"""A port at which rank 0 of a job that is about to start may listen.

Between the choice of a port and the listening another program can take it. One of the range from
which the kernel serves itself (ip_local_port_range) goes to any connection that begins meanwhile;
these lie below it, and are given out in turn to all who ask on this machine.
"""

import fcntl
import os
import pathlib
import socket
import tempfile

FIRST, LAST = 10000, 14999


def _is_free(port):
    with socket.socket() as listener:
        try:
            listener.bind(("", port))
        except OSError:
            return False
    return True


def free_port():
    with open(pathlib.Path(tempfile.gettempdir()) / f"thinwire-port-{os.getuid()}", "a+",
              encoding="ascii") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        turn.seek(0)
        text = turn.read().strip()
        last = int(text) if text.isdecimal() and FIRST <= int(text) <= LAST else LAST
        for _ in range(FIRST, LAST + 1):
            last = last + 1 if last < LAST else FIRST
            if _is_free(last):
                turn.truncate(0)
                turn.write(str(last))
                return last
    raise OSError(f"no port from {FIRST} to {LAST} is free")
