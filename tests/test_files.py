"Files are written whole or not at all"
import os

import pytest
from magnifier.files import aside


def names(folder): return sorted(f.name for f in folder.iterdir())


def test_aside_replaces_once_it_is_whole(tmp_path):
    file = tmp_path/'new/a.txt'
    with aside(file) as part:
        part.write_text('one')
        assert not file.exists()
    assert file.read_text() == 'one' and names(file.parent) == ['a.txt']
    with pytest.raises(KeyError), aside(file) as part:
        part.write_text('two')
        raise KeyError
    assert file.read_text() == 'one' and names(file.parent) == ['a.txt']


def test_what_cannot_be_written_says_what_to_do(tmp_path, monkeypatch):
    def full(*args): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='cannot write .*a.txt: No space left on device; make room or name another folder'), aside(tmp_path/'a.txt') as part:
        part.write_text('one')
    assert names(tmp_path) == []


def test_a_name_that_cannot_be_a_file_is_refused_before_anything_is_made(tmp_path):
    (tmp_path/'a').write_text('a file')
    with pytest.raises(OSError, match='cannot write .*a/b.txt: .*name another folder'), aside(tmp_path/'a'/'b.txt'): pytest.fail('nothing to write to')
    with pytest.raises(OSError, match='cannot write'), aside(tmp_path) as part: part.write_text('one')
    assert names(tmp_path) == ['a']


@pytest.mark.parametrize('synced', [True, False])
def test_the_disk_is_waited_for_where_that_is_asked(tmp_path, monkeypatch, synced):
    waited = []
    monkeypatch.setattr(os, 'fsync', waited.append)
    with aside(tmp_path/'a.txt', synced=synced) as part: part.write_text('one')
    assert len(waited) == synced
