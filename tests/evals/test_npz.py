"""Files of arrays: what numpy wrote comes back, what is damaged or hostile is one line."""

import os
import pathlib
import resource
import zipfile

import numpy as np
import pytest

from dit_jax.core.errors import UserError
from dit_jax.evals import npz

IMAGES = np.random.default_rng(0).integers(0, 256, (11, 6, 6, 3), np.uint8)


def test_what_is_written_comes_back(tmp_path):
  path = tmp_path / "new" / "a.npz"
  arrays = {"mu": np.arange(3.0), "meta": np.asarray("wörd"), "sigma": np.eye(3, order="F")[:2]}
  npz.write(path, arrays)
  assert npz.names(path) == set(arrays)
  got = npz.read(path, ["sigma", "mu", "meta", "absent"])
  assert got.keys() == arrays.keys()
  for name, array in arrays.items():
    np.testing.assert_array_equal(got[name], array)
  assert os.listdir(path.parent) == ["a.npz"]  # nothing half written beside it


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_mapped_array_stays_on_disk_where_the_file_packs_nothing(tmp_path, save):
  x = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
  save(tmp_path / "a.npz", before=np.arange(7), arr_0=x, turned=np.asfortranarray(x[0]))
  for name, want in (("arr_0", x), ("turned", x[0])):
    got = npz.mapped(tmp_path / "a.npz", name)
    np.testing.assert_array_equal(got, want)
    assert (got.dtype, isinstance(got, np.memmap)) == (np.uint8, save is np.savez)
  with pytest.raises(UserError, match="has no arr_1 but arr_0, before, turned"):
    npz.mapped(tmp_path / "a.npz", "arr_1")


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
  path = tmp_path / "a.npz"
  npz.write(path, {"mu": np.arange(3.0)})
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
  try:
    with pytest.raises(UserError, match=r"a.npz cannot be written \(File too large\)"):
      npz.write(path, {"mu": np.arange(4000.0)})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  with pytest.raises(UserError, match="cannot be written"):
    npz.write(path / "b.npz", {"mu": np.arange(4.0)})
  assert os.listdir(tmp_path) == ["a.npz"]
  np.testing.assert_array_equal(npz.read(path, ["mu"])["mu"], np.arange(3.0))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("size", [1, 4, 11, 50])
def test_images_come_in_parts(tmp_path, save, size):
  save(tmp_path / "a.npz", arr_0=IMAGES)
  parts = list(npz.images(tmp_path / "a.npz", size))
  assert {len(p) for p in parts[:-1]} <= {size}
  np.testing.assert_array_equal(np.concatenate(parts), IMAGES)


def wrong(path, kind: str) -> None:
  """A file that is none, or no longer."""
  np.savez_compressed(path, arr_0=IMAGES, mu=np.arange(400.0))
  good = path.read_bytes()
  if kind == "missing":
    path.unlink()
  elif kind == "a folder":
    path.unlink()
    path.mkdir()
  elif kind == "flipped":
    place = good.index(b"mu.npy") + 60
    path.write_bytes(good[:place] + bytes([good[place] ^ 255]) + good[place + 1 :])
  elif kind in ("longer than it is", "of another format"):
    with zipfile.ZipFile(path, "w") as file, file.open("mu.npy", "w") as member:
      header = {"descr": "<f8", "fortran_order": False, "shape": (10**15,)}
      np.lib.format.write_array_header_1_0(member, header)
    if kind == "of another format":
      with zipfile.ZipFile(path, "w") as file:
        file.writestr("mu.npy", b"\x93NUMPY\x07\x00" + b" " * 200)
  elif kind == "an npy":
    with path.open("wb") as file:
      np.save(file, IMAGES)
  else:
    path.write_bytes({"cut": good[:-40], "empty": b"", "text": b"mu = 1"}[kind])


@pytest.mark.parametrize(
  "kind",
  [
    "missing", "a folder", "flipped", "longer than it is", "of another format", "an npy", "cut",
    "empty", "text",
  ],
)  # fmt: skip
def test_damage_is_one_line(tmp_path, kind):
  path = tmp_path / "a.npz"
  wrong(path, kind)
  with pytest.raises(UserError, match=r"a\.npz (does not exist|is damaged)") as error:
    npz.read(path, ["mu"])
  assert "\n" not in str(error.value)


class Payload:
  """Unpickled, it makes a file."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return pathlib.Path.touch, (self.path,)


def test_objects_are_refused_and_not_run(tmp_path):
  path, run = tmp_path / "a.npz", tmp_path / "run"
  np.savez(path, mu=np.array([Payload(run)], dtype=object), arr_0=np.array([Payload(run)] * 4))
  with pytest.raises(UserError, match=r"mu of .* holds Python objects"):
    npz.read(path, ["mu"])
  with pytest.raises(UserError, match=r"arr_0 of .* holds Python objects"):
    list(npz.images(path))
  assert not run.exists()


def test_a_bomb_is_refused_before_it_unpacks(tmp_path, monkeypatch):
  path = tmp_path / "a.npz"
  np.savez_compressed(path, mu=np.zeros(500_000))
  assert path.stat().st_size < 10_000
  assert npz.read(path, ["mu"])["mu"].nbytes == 4_000_000
  monkeypatch.setattr(npz, "LARGEST", 3_999_999)
  monkeypatch.setattr(np.lib.format, "read_array", None)
  with pytest.raises(UserError, match=r"mu of .* is \[500000\], more than 3,999,999 bytes"):
    npz.read(path, ["mu"])


@pytest.mark.parametrize(
  ("array", "said"),
  [
    (IMAGES.astype(np.float32), r"float32 \[11, 6, 6, 3\]"),
    (IMAGES[:, :5], r"\[11, 5, 6, 3\]"),
    (IMAGES[..., 0], r"\[11, 6, 6\]"),
    (IMAGES[:0], r"\[0, 6, 6, 3\]"),
    (np.asfortranarray(IMAGES), "Fortran"),
  ],
)
def test_other_images_are_refused(tmp_path, array, said):
  np.savez(tmp_path / "a.npz", arr_0=array)
  with pytest.raises(UserError, match=said):
    list(npz.images(tmp_path / "a.npz"))


def test_a_file_without_images_is_told(tmp_path):
  np.savez(tmp_path / "a.npz", images=IMAGES)
  with pytest.raises(UserError, match="has no arr_0"):
    list(npz.images(tmp_path / "a.npz"))
