"""Safetensors come back as they were; a new file is there whole or not at all."""

import json

import ml_dtypes
import numpy as np
import pytest

from dit_jax.core.errors import UserError
from dit_jax.weights import files

ARRAYS = {
  "a/kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
  "half": np.arange(4).astype(np.float16),
  "brain": np.arange(4).astype(ml_dtypes.bfloat16),
  "one": np.array(3.0, np.float64),
}


def test_round_trip_is_exact(tmp_path):
  turned = ARRAYS | {"turned": ARRAYS["a/kernel"].T, "part": ARRAYS["a/kernel"][:, ::2]}
  files.save_safetensors(tmp_path / "w.safetensors", turned, {"k": "v"})
  got, metadata = files.load_safetensors(tmp_path / "w.safetensors")
  assert metadata == {"k": "v"}
  assert set(got) == set(turned)
  for name, x in turned.items():
    assert (got[name].dtype, got[name].shape) == (x.dtype, x.shape)
    np.testing.assert_array_equal(got[name], x)


def lies(data: bytes) -> dict[str, bytes]:
  """Broken and lying files made of a whole one."""
  size = int.from_bytes(data[:8], "little")
  header = data[8 : 8 + size]
  remade = lambda h: len(h).to_bytes(8, "little") + h + data[8 + size :]
  told = json.loads(header)
  placed = lambda name, *span: remade(
    json.dumps(told | {name: told[name] | {"data_offsets": span}}).encode()
  )
  return {
    "empty": b"",
    "no header": data[:5],
    "half": data[: len(data) // 2],
    "a byte less": data[:-1],
    "a byte more": data + b"x",
    "a huge header": b"\xff" * 8 + data[8:],
    "no JSON": remade(b"{" + header[:-1]),
    "another shape": remade(header.replace(b"[3,4]", b"[3,5]")),
    "a huge shape": remade(header.replace(b"[3,4]", b"[9999999999999999999,4]")),
    "another dtype": remade(header.replace(b'"F16"', b'"F64"')),
    "an unknown dtype": remade(header.replace(b'"F16"', b'"OBJ"')),
    "a header longer than the file": (size + 2**20).to_bytes(8, "little") + data[8:],
    "a header of 128 MB": (2**27).to_bytes(8, "little") + data[8:],
    "arrays that overlap": placed("half", 56, 64),
    "an array past the end": placed("half", 2**40, 2**40 + 8),
    "a negative offset": placed("half", -8, 0),
    "an end before its start": placed("half", 72, 64),
    "an offset past integers": placed("half", 2**64, 2**64 + 8),
    "a name twice": remade(header.replace(b'"half"', b'"brain"')),
    "nested lists": remade(b"[" * 200_000),
    "a pickle": b"\x80\x04cos\nsystem\n(Vtrue\ntR.",
  }


def test_torn_and_lying_files_are_refused(tmp_path):
  files.save_safetensors(tmp_path / "w.safetensors", ARRAYS, {})
  tried = lies((tmp_path / "w.safetensors").read_bytes())
  for name, data in tried.items():
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(UserError, match=r"x\.safetensors is not a whole") as e:
      files.load_safetensors(tmp_path / "x.safetensors")
    assert "\n" not in str(e.value), name
  print(f"refused {len(tried)} of {len(tried)} broken safetensors")
  for path in (tmp_path / "absent", tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
      files.load_safetensors(path)


@pytest.mark.parametrize("folder", [False, True])
def test_a_new_path_appears_when_it_is_whole(tmp_path, folder):
  (tmp_path / "deep").mkdir()
  destination = tmp_path / "deep" / "w.pt"

  def write(path):
    if folder:
      path.mkdir()
      path = path / "inner"
    path.write_bytes(b"x")

  with pytest.raises(ZeroDivisionError), files.new_path(destination) as new:  # noqa: PT012
    write(new)
    raise ZeroDivisionError
  assert list((tmp_path / "deep").iterdir()) == []
  with files.new_path(destination) as new:
    assert new.suffix == ".pt"
    write(new)
    assert not destination.exists()
  assert [p.name for p in (tmp_path / "deep").iterdir()] == ["w.pt"]
  with pytest.raises(UserError, match="exists already"), files.new_path(destination):
    pass


@pytest.mark.parametrize("destination", ["new/deep/w", "old/deep/w", "old/w"])
def test_where_nothing_came_no_folder_stays(tmp_path, destination):
  (tmp_path / "old").mkdir()

  def attempt(beside=""):
    with pytest.raises(UserError, match="no"), files.new_path(tmp_path / destination) as new:  # noqa: PT012
      assert new.parent.is_dir()
      if beside:
        (new.parent / beside).write_bytes(b"x")
      raise UserError("no")

  attempt()
  assert [p.name for p in tmp_path.rglob("*")] == ["old"]
  attempt("somebody's")
  assert (tmp_path / destination).with_name("somebody's").exists()


def test_a_place_that_cannot_be_written_is_said(tmp_path):
  (tmp_path / "file").write_bytes(b"x")
  with pytest.raises(UserError, match="cannot be written"), files.new_path(tmp_path / "file" / "w"):
    pass
