import pathlib
import threading

import pytest

from dit_jax.core import files


def test_a_file_is_there_whole_or_as_it_was(tmp_path):
  path = tmp_path / "new" / "card.json"
  files.write_text(path, "first")
  with pytest.raises(UnicodeEncodeError):
    files.write_text(path, "second, as far as it went: \ud83d")
  assert path.read_text() == "first"
  with files.in_one_move(path) as half:
    half.write_text("second")
    assert path.read_text() == "first"
  assert path.read_text() == "second"
  assert list(path.parent.iterdir()) == [path]


def test_a_kill_leaves_what_is_no_file_of_that_name(tmp_path, monkeypatch):
  def kill(self, target):
    raise SystemExit

  monkeypatch.setattr(pathlib.Path, "replace", kill)
  monkeypatch.setattr(pathlib.Path, "unlink", lambda self: None)  # nor is there time to tidy up
  with pytest.raises(SystemExit):
    files.write_text(tmp_path / "a.npz", "whole")
  (left,) = tmp_path.iterdir()
  assert left.match("a.npz.*.tmp")


def test_writers_of_one_file_do_not_meet(tmp_path):
  """Two at once, of one process: the later to end has the last word, and both end well."""
  page = tmp_path / "page"
  with files.in_one_move(page) as first, files.in_one_move(page) as second:
    assert first != second
    first.write_text("a" * 100)
    second.write_text("b")
  assert page.read_text() == "a" * 100
  page.unlink()

  def write(letter):
    for _ in range(50):
      files.write_text(page, letter * 10_000)

  threads = [threading.Thread(target=write, args=(letter,)) for letter in "ab"]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert page.read_text() in ("a" * 10_000, "b" * 10_000)
  assert len(list(tmp_path.iterdir())) == 1


def test_what_cannot_be_written_is_an_oserror(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises((FileExistsError, NotADirectoryError)):
    files.write_text(tmp_path / "file" / "below", "text")
  with pytest.raises(IsADirectoryError):
    files.write_text(tmp_path, "text")
  assert [path.name for path in tmp_path.iterdir()] == ["file"]
