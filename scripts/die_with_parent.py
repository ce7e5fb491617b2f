"""For processes that nothing else would end: a child that ends with its parent."""

import ctypes
import signal


def die_with_parent():
    """For Popen's preexec_fn, which calls it in the child: SIGKILL when the parent ends, however it
    ends. The kernel takes the thread that started the child for its parent."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
