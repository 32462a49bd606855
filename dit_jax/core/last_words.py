"""Says in one line which process of a cluster died, as the last line of those that end with it.

jax ends a process whose cluster is broken from C++: abort(), a message of ten lines and a stack
trace, and no chance for Python to add a word. So a small child reads the stderr of the process,
passes it on as it comes and, behind such an end, says what it meant.
"""

import os
import re
import select
import subprocess
import sys

STDERR = 2
FATAL = b"the JAX distributed service detected fatal errors"
_KEPT = 100_000  # bytes of stderr that are looked through
_STORIES = (  # the end of jax's message, and what happened to which process
  (r"The first task at the barrier: (\d+)", "process {} ended before the others, see its log"),
  (r"Task (\d+) heartbeat timeout", "process {} gives no sign of life, it died or was taken away"),
  (
    r"stopped sending heartbeats\):\s*(.+?)\s*The tasks",
    "process {} gives no sign of life, it died or was taken away",
  ),
  (r"Service/RegisterTask", "not all processes came together in time"),
  (r"the leader task was", "process 0, the coordinator, died or was taken away"),
)
_children = []  # kept, so that Python does not call them abandoned


def listen() -> None:
  """From here on a child reads this process's stderr, and lives as long as the process."""
  # Isolated: beside this file lie modules named like the standard library's. A session of its own:
  # Ctrl-C ends this process, and the child with it, not before it.
  child = subprocess.Popen(
    [sys.executable, "-I", "-S", __file__], stdin=subprocess.PIPE, start_new_session=True
  )
  _children.append(child)
  os.dup2(child.stdin.fileno(), STDERR)
  child.stdin.close()


def story(told: str) -> str:
  """What happened, from the stderr of a process that jax ended."""
  end = told[told.rindex(FATAL.decode()) :]
  for pattern, text in _STORIES:
    if found := re.search(pattern, end, re.DOTALL):
      who = ", ".join(re.findall(r"\d+", found[1])) if found.groups() else ""
      return f"{text.format(who)}; run the same line on every host to resume"
  return "another process died, see the other logs; run the same line on every host to resume"


def _pass_on() -> None:
  kept = b""
  # What the process started may hold its stderr open; after the end there is nothing to wait for.
  while FATAL not in kept or select.select([0], [], [], 1.0)[0]:
    chunk = os.read(0, 1 << 16)
    if not chunk:
      break
    sys.stderr.buffer.write(chunk)
    sys.stderr.buffer.flush()
    kept = (kept + chunk)[-_KEPT:]
  if FATAL in kept:
    print(f"error: {story(kept.decode(errors='replace'))}", file=sys.stderr, flush=True)


if __name__ == "__main__":
  _pass_on()
