"""A latent cache of given records, one an image of a source, for the tests of its readers."""

from dit_jax.data import latent_shards


def write(folder, meta: dict, records, facts=(), **how) -> None:
  """Writes a cache; see latent_shards.write for `how`."""
  records = list(records)
  given = lambda positions, done: ((i, records[i]) for i in positions.tolist())
  latent_shards.write(folder, meta, dict(facts), len(records), given, **how)
