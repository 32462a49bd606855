"""How every entry point starts and ends: own flags, one line for a user's error, exit codes.

Exit codes: 0 done, 1 our own bug (with its traceback), 2 something the user can fix, 130 Ctrl-C,
143 stopped by SIGTERM, 134 (SIGABRT) another process of the cluster died.
"""

import os
import pathlib
import re
import socket
import sys
import traceback

import jax
from absl import flags
from ml_collections import config_flags

from dit_jax.core import config as configs
from dit_jax.core import last_words
from dit_jax.core.errors import UserError

USER_ERROR = 2
INTERRUPTED = 130
HEARTBEAT = 80  # seconds without a sign of life after which a process counts as dead
_HELP = ("--help", "-help", "-h", "--helpfull", "--helpshort")


def run(main, flag_values: flags.FlagValues, argv=None) -> None:
  """Parses the module's own flags and calls `main()`.

  Args:
    main: takes nothing; reads its flags from the holders of `flag_values`.
    flag_values: the entry point's own FlagValues, which may define `--config` with
      `config_flags.DEFINE_config_file(..., flag_values=...)`.
    argv: program name and arguments; None takes `sys.argv`.

  Raises:
    SystemExit: 0 after --help, 2 after a user's error, 130 after Ctrl-C. Success returns.
  """
  argv = list(sys.argv if argv is None else argv)
  try:
    if _asks_for_help(argv):
      print(_help_text(main, flag_values))
      raise SystemExit(0)
    parse_flags(flag_values, argv)
    main()
  except UserError as e:
    print(f"error: {_one_line(e)}", file=sys.stderr)
    raise SystemExit(USER_ERROR) from None
  except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    raise SystemExit(INTERRUPTED) from None


def parse_flags(flag_values: flags.FlagValues, argv: list[str]) -> None:
  """Parses `argv` afresh; whatever goes wrong here is the user's line or the user's config file.

  Raises:
    UserError: unknown flag or field, wrong type or choice, extra words, or a config file that is
      missing or fails.
  """
  flags.FLAGS(argv[:1])  # grain's workers and orbax read absl's global flags
  for name in [name for name in flag_values if "." in name]:
    delattr(flag_values, name)  # overrides of an earlier call in this process
  flag_values.unparse_flags()
  _check_config_files(flag_values, argv)
  for name in _config_flags(flag_values):
    sys.modules.pop(f"{name}_config", None)  # ml_collections loads one file into another's module
  previous, sys.argv = sys.argv, argv  # ml_collections looks for overrides there
  try:
    rest = flag_values(argv)
    values = {name: flag_values[name].value for name in _config_flags(flag_values)}
    # A config whose file met an OSError raises it here, when it is first touched.
    given = _config_paths(flag_values, argv)
    odd = [name for name in given if not hasattr(values[name], "to_dict")]
  except Exception as e:
    raise UserError(_parse_error(e, flag_values, argv)) from e
  finally:
    sys.argv = previous
  for name in odd:
    kind = type(values[name]).__name__
    raise UserError(f"--{name}: get_config() returned a {kind}; it must return a ConfigDict.")
  if len(rest) > 1:
    raise UserError(f"unexpected argument {rest[1]!r}; every option is written --name=value.")


def refuse_unwritable(flag: str, path: pathlib.Path) -> None:
  """Raises UserError where an answer could not be written after the hours that it took."""
  folder = next(p for p in path.absolute().parents if p.exists())
  if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
    raise UserError(f"--{flag}={path} cannot be written; name a file in a folder of yours.")


def initialize_distributed(coordinator="", num_processes=None, process_id=None) -> None:
  """Joins the cluster that the flags or the environment describe; a single process is left alone.

  A cluster is: the three arguments; JAX_COORDINATOR_ADDRESS with JAX_NUM_PROCESSES and
  JAX_PROCESS_ID; a Slurm or Open MPI job of several tasks; a TPU slice of several hosts
  (TPU_WORKER_HOSTNAMES, multislice). Where only jax can tell, as on a Cloud TPU VM started by hand,
  DIT_JAX_DISTRIBUTED=1 says to ask it. When one process dies, the others end within HEARTBEAT
  seconds and say which.

  Args:
    coordinator: HOST:PORT of process 0; "" where the environment describes the cluster.
    num_processes: how many processes there are.
    process_id: the number of this one, from 0.

  Raises:
    UserError: the cluster's description is incomplete or impossible, or the port is taken.
  """
  if jax.distributed.is_initialized():
    return
  env = os.environ
  flags_given = {
    "--coordinator": coordinator or None,
    "--num_processes": num_processes,
    "--process_id": process_id,
  }
  if any(value is not None for value in flags_given.values()):
    _join(*_checked(flags_given))
  elif env.get("JAX_COORDINATOR_ADDRESS") and "JAX_PROCESS_ID" in env:
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    _join(*_checked({name: env.get(name) for name in names}))
  elif _cluster_in(env):
    _join()


def _checked(given: dict) -> tuple[str, int, int]:
  """Coordinator, number of processes and number of this one, by the names that the user wrote."""
  address, *counts = given
  if missing := [name for name, value in given.items() if value is None]:
    raise UserError(f"{', '.join(given)} go together; missing: {', '.join(missing)}.")
  host, _, port = given[address].rpartition(":")
  if not host or not port.isdigit() or not 0 < int(port) < 2**16:
    raise UserError(f"{address}={given[address]} must be HOST:PORT of process 0.")
  try:
    num_processes, process_id = (int(given[name]) for name in counts)
  except ValueError:
    told = " and ".join(f"{name}={given[name]}" for name in counts)
    raise UserError(f"{told} must be integers.") from None
  if num_processes < 1:
    raise UserError(f"{counts[0]}={num_processes} must be at least 1.")
  if not 0 <= process_id < num_processes:
    raise UserError(
      f"{counts[1]}={process_id} must be one of 0 to {num_processes - 1}, as {counts[0]}="
      f"{num_processes}."
    )
  if process_id == 0 and _taken(int(port)):  # jax would end with a segmentation fault
    raise UserError(
      f"{address}={given[address]}: port {port} is in use on this host; choose another."
    )
  return given[address], num_processes, process_id


def _taken(port: int) -> bool:
  try:
    with socket.create_server(("", port)):
      return False
  except OSError:
    return True


def _join(*cluster) -> None:
  last_words.listen()
  jax.distributed.initialize(
    *cluster, heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=HEARTBEAT
  )


def _cluster_in(env) -> bool:
  """Whether the environment names several processes that jax can find by itself."""

  def several(name: str) -> bool:
    return env.get(name, "").isdigit() and int(env[name]) > 1

  return bool(
    env.get("DIT_JAX_DISTRIBUTED") == "1"
    or env.get("JAX_COORDINATOR_ADDRESS")
    or env.get("MEGASCALE_COORDINATOR_ADDRESS")
    or "," in env.get("TPU_WORKER_HOSTNAMES", "")
    or (env.get("SLURM_JOB_ID") and env.get("SLURM_STEP_ID") and several("SLURM_NTASKS"))
    or several("OMPI_COMM_WORLD_SIZE")
  )


def _asks_for_help(argv: list[str]) -> bool:
  before = argv[1 : argv.index("--")] if "--" in argv else argv[1:]
  return any(word in _HELP for word in before)


def _help_text(main, flag_values: flags.FlagValues) -> str:
  module = sys.modules.get(getattr(main, "__module__", ""), None)
  about = (getattr(module, "__doc__", None) or "").strip()
  return f"{about}\n{flag_values.get_help()}".strip()


def _config_flags(flag_values: flags.FlagValues) -> list[str]:
  return [
    name for name in flag_values if config_flags.config_flags.is_config_flag(flag_values[name])
  ]


def _config_paths(flag_values, argv) -> dict[str, str]:
  """Path of the config file by flag, as far as the line gives one."""
  paths = {}
  for name in _config_flags(flag_values):
    for i, word in enumerate(argv[1:], 1):
      if match := re.fullmatch(rf"--?{re.escape(name)}(?:=(.*))?", word, re.DOTALL):
        value = match[1] if match[1] is not None else "".join(argv[i + 1 : i + 2])
        paths[name] = value.split(":", 1)[0]
  return paths


def _check_config_files(flag_values, argv) -> None:
  for name, path in _config_paths(flag_values, argv).items():
    if not path.endswith(".py") or not os.path.isfile(path):
      raise UserError(
        f"--{name}={path}: no such config file; give the path of a .py file with get_config()."
      )


def _parse_error(error: Exception, flag_values, argv) -> str:
  """What to tell the user about an exception that was raised while the line was parsed."""
  root = error
  while (cause := root.__cause__ or root.__context__) is not None:
    root = cause
  paths = _config_paths(flag_values, argv)
  for path in paths.values():
    if isinstance(root, UserError):
      return f"config file {path}: {root}"
    if line := _line_in(path, root):
      return f"config file {path}, line {line}: {type(root).__name__}: {root}"
  if isinstance(error, config_flags.config_flags.FlagOrderError):
    return str(error)
  for name, path in paths.items():
    if text := _field_error(name, path, argv):
      return text
  return str(error)


def _line_in(path: str, error: BaseException) -> int:
  """The last line of the config file on the error's way, 0 if it did not pass there."""
  here = os.path.realpath(path)
  if isinstance(error, SyntaxError) and os.path.realpath(error.filename or "") == here:
    return error.lineno or 1
  frames = traceback.extract_tb(error.__traceback__)
  lines = [frame.lineno for frame in frames if os.path.realpath(frame.filename) == here]
  return lines[-1] if lines else 0


def _field_error(name: str, path: str, argv) -> str:
  """Which `--config.a.b=value` names no field, or does not fit its field's type; "" if none."""
  config = _config_alone(name, argv)
  if config is None:
    return f"config file {path} has no function get_config(), or it takes another argument."
  for flag, value in _overrides(name, argv):
    block = config
    for part in re.sub(r"^--?(no)?", "", flag).split(".")[1:]:
      known = list(block) if hasattr(block, "to_dict") else []
      if part not in known:
        near = configs.did_you_mean(part, known) or f"; known here: {', '.join(known) or 'none'}"
        return f"{flag} names no field of the config{near}"
      block = block[part]
    if value is None:
      return f"{flag} has no value; write {flag}={block!r}."
    try:
      _parse_config(name, argv, [f"{flag}={value}"])
    except Exception:
      if hasattr(block, "to_dict"):
        return f"{flag} is a block; set its fields, {', '.join(f'{flag}.{key}' for key in block)}."
      return f"{flag}={value!r} must be of type {type(block).__name__}, like {block!r}."
  return ""


def _overrides(name: str, argv):
  """(flag, value) of every override; the value may be the next word, None where there is none."""
  for i, word in enumerate(argv[1:], 1):
    if re.match(rf"--?(no)?{re.escape(name)}\.", word):
      flag, equals, value = word.partition("=")
      following = argv[i + 1] if i + 1 < len(argv) else "--"
      yield flag, value if equals else None if following.startswith("--") else following


def _config_alone(name: str, argv):
  """The config without its overrides, None where even that fails."""
  try:
    return _parse_config(name, argv, [])
  except Exception:
    return None


def _parse_config(name: str, argv, overrides: list[str]):
  """Parses the config flag and some overrides on flags of their own."""
  own = flags.FlagValues()
  config_flags.DEFINE_config_file(name, flag_values=own)
  at = max(i for i, w in enumerate(argv) if re.fullmatch(rf"--?{re.escape(name)}(=.*)?", w))
  words = argv[at : at + 1 if "=" in argv[at] else at + 2]
  previous, sys.argv = sys.argv, [argv[0], *words, *overrides]
  try:
    own(sys.argv)
  finally:
    sys.argv = previous
  return own[name].value


def _one_line(error: Exception) -> str:
  return " ".join(str(error).split())
