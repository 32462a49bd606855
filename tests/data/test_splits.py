"""Which part of a set is trained on: said by the set or by the user, never guessed."""

import pytest

from dit_jax.core.errors import UserError
from dit_jax.data.splits import choose


@pytest.mark.parametrize(
  ("present", "wanted", "roles"),
  [
    ([""], "", {"": ""}),
    ([], "", {}),
    (["anything"], "", {"anything": ""}),
    (["train"], "", {"train": ""}),  # every n-th image is held out, as without splits
    (["train", "val"], "", {"train": "train", "val": "heldout"}),
    (["test", "train", "val"], "", {"train": "train", "val": "heldout"}),
    (["test", "train", "validation"], "", {"train": "train", "validation": "heldout"}),
    (["test", "train"], "", {"train": "train", "test": "heldout"}),
    (["extra", "test", "train"], "", {"train": "train", "test": "heldout"}),
    (["test", "train", "val"], "test", {"test": ""}),
    (["val"], "val", {"val": ""}),
  ],
)
def test_roles(present, wanted, roles):
  assert choose(present, wanted, "the set") == roles
  assert choose(reversed(present), wanted, "the set") == roles


@pytest.mark.parametrize(
  ("present", "wanted", "message"),
  [
    (["train", "val"], "vall", "data.split='vall' is no split of the set; did you mean 'val'"),
    (["train", "val"], "zzz", "it has train, val"),
    ([], "train", "it has none"),
    (["test", "val"], "", "no 'train'; choose one by data.split"),
    (["test"], "", "no 'train'"),
    (["train", "val", "valid"], "", "which one is held out is unclear"),
    (["a", "b"], "", "no 'train'"),
    (["", "train"], "", "images of no split beside those of train"),
  ],
)
def test_refusals(present, wanted, message):
  with pytest.raises(UserError, match=message):
    choose(present, wanted, "the set")
