"""Trains a recipe: python -m dit_jax.main --config=configs/d2it_xl.py --workdir=DIR

The same line resumes. `--config.data.path=PATH` trains any recipe on your own data (docs/data.md).
"""

from absl import flags
from ml_collections import config_flags

from dit_jax import train
from dit_jax.core import cli
from dit_jax.core.errors import UserError

FLAGS = flags.FlagValues()
_CONFIG = config_flags.DEFINE_config_file(
  "config", help_string="The recipe, a file of configs/.", lock_config=True, flag_values=FLAGS
)
_WORKDIR = flags.DEFINE_string("workdir", "", "Where everything goes.", flag_values=FLAGS)
_STAGE = flags.DEFINE_string("stage", "", "Train this stage alone.", flag_values=FLAGS)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", "", "HOST:PORT of process 0, where several train together.", flag_values=FLAGS
)
_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many they are.", flag_values=FLAGS)
_PROCESS = flags.DEFINE_integer("process_id", None, "This one, from 0.", flag_values=FLAGS)


def main():
  if _CONFIG.value is None or not _WORKDIR.value:
    raise UserError("--config=FILE.py and --workdir=DIR are needed; see --help.")
  cli.initialize_distributed(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
  train.train_and_evaluate(_CONFIG.value, _WORKDIR.value, _STAGE.value)


if __name__ == "__main__":
  cli.run(main, FLAGS)
