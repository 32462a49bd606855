"""iNaturalist 2021 (Van Horn et al., arXiv 2103.16483): what its 10,000 folder names say.

A folder is "02912_Animalia_Chordata_Actinopterygii_Perciformes_..._Genus_species": the id of the
class, its kingdom, phylum, class, order, family, genus and species.
"""

import bisect
from collections import Counter

from dit_jax.core.errors import UserError

NUM_CLASSES = 10_000
RANKS = ("genus", "family", "order", "class", "phylum", "kingdom")  # finest first
GROUP = "group"
# The iconic groups by the ids of their classes, first and last; what lies in none is OTHER.
GROUPS = {
  "Arachnids": (4, 156),
  "Insects": (175, 2700),
  "Ray-finned Fishes": (2756, 2938),
  "Amphibians": (2939, 3108),
  "Birds": (3111, 4596),
  "Mammals": (4613, 4858),
  "Reptiles": (4859, 5171),
  "Mollusks": (5219, 5387),
  "Fungi": (5388, 5728),
  "Plants": (5729, 9999),
}
OTHER = "Animalia"


def group(number: int) -> str:
  """The iconic group of a class."""
  starts = [first for first, _ in GROUPS.values()]
  place = bisect.bisect_right(starts, number) - 1
  name = list(GROUPS)[max(place, 0)]
  first, last = GROUPS[name]
  return name if first <= number <= last else OTHER


def lineages(folders: list[str], levels: tuple[str, ...]):
  """The superclasses of every folder, as data.taxonomy sees them.

  The groups cut across phyla and kingdoms, so they stand in their place where they are asked for.

  Args:
    folders: names of the class folders.
    levels: the ranks wanted; whether GROUP is among them matters.

  Returns:
    The columns, finest first; the values of every folder in them; the name to show for it, "Genus
    species" (or the folder's own, where two have the same).

  Raises:
    UserError: a folder that is named otherwise.
  """
  ranks = RANKS[:4] if GROUP in levels else RANKS
  columns = (*ranks, GROUP) if GROUP in levels else ranks
  values, names = {}, {}
  for folder in folders:
    number, *lineage = folder.split("_", 7)
    if len(lineage) < 7 or not all(lineage) or not _is_id(number):
      raise UserError(
        f"the folder {folder!r} is not named as in iNaturalist 2021, five digits and seven names: "
        "00000_kingdom_phylum_class_order_family_genus_species; rename it, or unset data.taxonomy."
      )
    taxa = dict(zip(("species", *RANKS), reversed(lineage), strict=True))
    values[folder] = tuple({**taxa, GROUP: group(int(number))}[column] for column in columns)
    names[folder] = f"{taxa['genus']} {taxa['species'].replace('_', ' ')}"
  count = Counter(names.values())
  return columns, values, {f: name if count[name] == 1 else f for f, name in names.items()}


def _is_id(text: str) -> bool:
  return len(text) == 5 and text.isdecimal() and int(text) < NUM_CLASSES
