"magnifier_walkers as a shell sees it"
import pytest

from magnifier.cli.data import magnifier_walkers


def test_walkers_prints_where_they_are(walkers_root, tmp_path, capsys):
    # another set is there
    with pytest.raises(SystemExit, match='magnifier_walkers'): magnifier_walkers(str(walkers_root), n_train=3)
    new = tmp_path/'more'
    magnifier_walkers(str(new), n_train=1, n_test=1)
    assert capsys.readouterr().out.strip() == str(new)
    assert (new/'query').is_dir()


def test_the_keyboard_stops_a_command(monkeypatch, capsys):
    monkeypatch.setattr('magnifier.walkers.dataset.walkers', lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(SystemExit) as e: magnifier_walkers(n_train=3)
    assert e.value.code == 130
    assert capsys.readouterr().err == 'magnifier_walkers: stopped by the keyboard\n'
