"""Laws of the clock: what is due when, and rates that leave the compile out."""

import io

import pytest

from dit_jax.core import clock


def test_due_hits_every_interval_and_the_end():
  assert [step for step in range(11) if clock.due(step, 4, 10)] == [4, 8, 10]
  assert [step for step in range(11) if clock.due(step, 1, 10)] == list(range(1, 11))


def test_an_interval_of_zero_is_never_due():
  assert not any(clock.due(step, 0, 10) for step in range(11))


class Time:
  def __init__(self):
    self.seconds = 0.0

  def __call__(self):
    return self.seconds


def test_rate_and_eta_leave_the_first_step_out():
  now, out = Time(), io.StringIO()
  progress = clock.Progress(102, 8, label="dct", stream=out, now=now)
  now.seconds = 1000.0  # the compile
  progress.tick(1)
  for step in range(2, 12):
    now.seconds += 0.5
    progress.tick(step)
  line = progress.report(11, {"loss": 0.25, "grad_norm": 1.5, "skipped": 0})
  # 10 steps of 8 images in 5 s; 91 steps are left.
  assert line == "step 11/102, loss 0.25, grad norm 1.5, 16 img/s, ETA 46s"
  assert out.getvalue() == f"[dct] {line}\n"


def test_the_first_report_has_no_rate():
  progress = clock.Progress(10, 8, stream=io.StringIO(), now=Time())
  progress.tick(1)
  assert progress.report(1, {"loss": 1.0}) == "step 1/10, loss 1"


def test_what_is_counted_has_a_name_and_what_was_there_costs_no_time():
  now = Time()
  progress = clock.Progress(
    100, 1, 60, label="latents", stream=io.StringIO(), now=now, unit="image"
  )
  progress.tick(70)  # compiled
  now.seconds = 5.0
  progress.tick(80)
  assert progress.report(80, {}) == "image 80/100, 2 img/s, ETA 10s"


def test_skipped_updates_are_told():
  progress = clock.Progress(10, 8, stream=io.StringIO(), now=Time())
  assert progress.report(1, {"loss": float("nan"), "skipped": 3}).endswith("skipped 3")


def test_a_terminal_gets_a_bar():
  class Terminal(io.StringIO):
    def isatty(self):
      return True

  out = Terminal()
  progress = clock.Progress(10, 8, first_step=4, label="dct", stream=out)
  progress.tick(5)
  progress.report(5, {"loss": 0.5})
  progress.close()
  assert "loss 0.5" in out.getvalue()
  assert "5/10" in out.getvalue()


@pytest.mark.parametrize(
  ("seconds", "text"),
  [(0, "0s"), (59.4, "59s"), (60, "1m00s"), (185, "3m05s"), (7620, "2h07m"), (273600, "3d04h")],
)
def test_duration(seconds, text):
  assert clock.duration(seconds) == text
