"""iNaturalist 2021: groups of the published sizes, lineages from the names of folders."""

from collections import Counter

import pytest

from dit_jax.core.errors import UserError
from dit_jax.data import inat

CARP = "02912_Animalia_Chordata_Actinopterygii_Cypriniformes_Cyprinidae_Cyprinus_carpio"
OAK = "08000_Plantae_Tracheophyta_Magnoliopsida_Fagales_Fagaceae_Quercus_robur"


def test_the_groups_have_the_published_numbers_of_classes():
  assert Counter(map(inat.group, range(inat.NUM_CLASSES))) == {
    "Plants": 4271,
    "Insects": 2526,
    "Birds": 1486,
    "Fungi": 341,
    "Reptiles": 313,
    "Mammals": 246,
    "Ray-finned Fishes": 183,
    "Amphibians": 170,
    "Mollusks": 169,
    "Arachnids": 153,
    "Animalia": 142,
  }


def test_ranges_ascend_and_do_not_meet():
  ends = [end for pair in inat.GROUPS.values() for end in pair]
  assert ends == sorted(set(ends))
  assert all(inat.group(i) == name for name, pair in inat.GROUPS.items() for i in pair)
  assert {inat.group(i) for i in (0, 3, 157, 174, 5218)} == {inat.OTHER}


def test_a_folder_tells_its_lineage_and_its_species():
  columns, values, names = inat.lineages([CARP, OAK], ())
  assert columns == ("genus", "family", "order", "class", "phylum", "kingdom")
  assert values[CARP] == (
    "Cyprinus", "Cyprinidae", "Cypriniformes", "Actinopterygii", "Chordata", "Animalia"
  )  # fmt: skip
  assert names == {CARP: "Cyprinus carpio", OAK: "Quercus robur"}


def test_groups_stand_above_the_classes():
  columns, values, _ = inat.lineages([CARP, OAK], ("family", "group"))
  assert columns == ("genus", "family", "order", "class", "group")
  assert [values[folder][-1] for folder in (CARP, OAK)] == ["Ray-finned Fishes", "Plants"]


def test_two_folders_of_one_species_keep_their_own_names():
  twin = CARP.replace("02912", "02913")
  assert inat.lineages([CARP, twin], ())[2] == {CARP: CARP, twin: twin}


@pytest.mark.parametrize(
  "name",
  ["sparrow", "02912_Animalia", CARP.replace("02912", "2912"), CARP.replace("_Cyprinus", "_"),
   CARP.replace("02912", "99999")],
)  # fmt: skip
def test_other_names_are_refused(name):
  with pytest.raises(UserError, match=r"00000_kingdom_phylum"):
    inat.lineages([CARP, name], ())
