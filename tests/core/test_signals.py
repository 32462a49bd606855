"""Laws of signals: the first asks, the second kills, and the old handlers come back."""

import os
import signal
import threading

import pytest

from dit_jax.core import signals


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_only_asks(signum):
  with signals.stop_on_signal() as stop:
    assert not stop.requested
    os.kill(os.getpid(), signum)
    assert stop.requested
    assert stop.signum == signum


def test_the_second_ctrl_c_interrupts():
  before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job
  try:
    with pytest.raises(KeyboardInterrupt), signals.stop_on_signal():  # noqa: PT012
      os.kill(os.getpid(), signal.SIGINT)
      os.kill(os.getpid(), signal.SIGINT)
      signal.pause()
  finally:
    signal.signal(signal.SIGINT, before)


def test_handlers_come_back():
  before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
  with signals.stop_on_signal():
    assert signal.getsignal(signal.SIGTERM) != before[0]
  assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before


def test_another_thread_is_left_alone():
  seen = []

  def work():
    with signals.stop_on_signal() as stop:
      seen.append(stop.requested)

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert seen == [False]
