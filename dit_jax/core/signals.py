"""SIGTERM and Ctrl-C ask a loop to stop at the next step; a second one kills."""

import contextlib
import os
import signal
import threading

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
  """What a loop polls: `requested`, and `signum` of the signal that asked (0 = none)."""

  def __init__(self):
    self.signum = 0

  @property
  def requested(self) -> bool:
    return self.signum != 0


@contextlib.contextmanager
def stop_on_signal():
  """Yields a StopRequest; the previous handlers are back when the block ends.

  The second signal goes to the previous handlers: the process dies, or KeyboardInterrupt is raised.
  Outside the main thread Python allows no handlers, and the request is never set.
  """
  request = StopRequest()
  if threading.current_thread() is not threading.main_thread():
    yield request
    return
  previous = {}

  def restore():
    while previous:
      signum, handler = previous.popitem()
      # None: a handler that C installed; Python cannot name it, so the default is next best.
      signal.signal(signum, signal.SIG_DFL if handler is None else handler)

  def handle(signum, frame):
    if request.requested:
      restore()
      os.kill(os.getpid(), signum)
    else:
      request.signum = signum

  for signum in _SIGNALS:
    previous[signum] = signal.signal(signum, handle)
  try:
    yield request
  finally:
    restore()
