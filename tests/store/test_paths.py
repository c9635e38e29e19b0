"""What cannot be recorded is refused before the first epoch, with the way out."""

import os
import shutil
import tempfile
from collections import namedtuple
from pathlib import Path

import pytest
from support.recordings import write_recording

from paddle_td_callback import StoreError, StoreExistsError, StoreNotFoundError, TrainingDynamicsRecorder
from paddle_td_callback.store import StoreWriter
from paddle_td_callback.store import paths as preflight
from paddle_td_callback.store.paths import check_path, check_space, move_into_place, set_aside
from paddle_td_callback.store.schema import Layout

Disk = namedtuple("Disk", "total used free")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.h5"


def test_paths_that_cannot_be_written(path, tmp_path):
    layout = Layout(5, 2)
    with pytest.raises(StoreNotFoundError, match=r"there is no folder '.*none'; create it first"):
        StoreWriter.create(tmp_path / "none" / "run.h5", layout)
    with pytest.raises(StoreError, match="is a folder; give the path of a file in it"):
        StoreWriter.create(tmp_path, layout)
    path.write_text("the user's")
    with pytest.raises(StoreExistsError, match="exists already; resume=True continues it, overwrite=True"):
        StoreWriter.create(path, layout)
    assert path.read_text() == "the user's"
    with pytest.raises(ValueError, match="contradict each other"):
        check_path(path, resume=True, overwrite=True)
    StoreWriter.create(path, layout, overwrite=True).close()
    assert sorted(os.listdir(tmp_path)) == ["run.h5"]  # nothing is left of the making


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root can become another user")
def test_a_folder_and_a_file_that_may_not_be_written(request):
    folder = Path(tempfile.mkdtemp())  # pytest's own may not be entered by others
    request.addfinalizer(lambda: shutil.rmtree(folder))
    folder.chmod(0o755)
    closed, readonly = folder / "closed", folder / "readonly.h5"
    closed.mkdir(mode=0o555)
    write_recording(readonly, Layout(5, 2), 1)
    readonly.chmod(0o444)
    messages = []
    os.setresuid(65534, 65534, 0)
    try:
        for path, options in (
            (closed / "run.h5", {}),
            (readonly, {"resume": True}),
            (readonly, {"overwrite": True}),
        ):
            with pytest.raises(StoreError) as caught:
                check_path(path, **options)
            messages.append(str(caught.value))
    finally:
        os.setresuid(0, 0, 0)
    assert "may not be written; give a path in another folder" in messages[0]
    for message in messages[1:]:
        assert "may not be written; get write permission on it" in message


@pytest.mark.parametrize(
    ("free_bytes", "message"),
    [
        (25e6, r"50 epochs of 10000 samples with keep='all' need about .* 25\.0 MB free; keep=5 fits"),
        (9e6, "keep='given' fits"),
        (1e6, "no keep= fits"),
    ],
)
def test_a_recording_that_cannot_fit_is_refused_with_the_keep_that_would(
    free_bytes, message, path, monkeypatch
):
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda folder: Disk(10**9, 0, int(free_bytes)))
    with pytest.raises(StoreError, match=message):
        TrainingDynamicsRecorder(path, n_samples=10_000, n_classes=100, expected_epochs=50)
    assert not path.exists()
    if "keep=5" in message:
        check_space(path, Layout(10_000, 100, keep=5), 50)
        with pytest.raises(StoreError, match="keep=5 fits"):
            check_space(path, Layout(10_000, 100, keep=6), 50)


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_a_file_gets_the_next_free_name_of_its_kind(links, path, tmp_path, monkeypatch):
    def refuse(*_paths):
        raise PermissionError(1, "Operation not permitted")  # as on FAT

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    assert set_aside(path) is None
    for number in (1, 2):
        path.write_text(str(number))
        assert set_aside(path) == str(tmp_path / f"run-{number}.h5")
        assert not path.exists()
    assert (tmp_path / "run-1.h5").read_text() == "1"


def test_where_folders_cannot_be_opened_a_file_gets_its_name_all_the_same(path, tmp_path, monkeypatch):
    (tmp_path / "new").write_text("new")
    with monkeypatch.context() as windows:
        windows.setattr(os, "name", "nt")
        windows.setattr(os, "open", lambda *_: pytest.fail("a folder was opened"))
        move_into_place(str(tmp_path / "new"), str(path), overwrite=True)
    assert path.read_text() == "new"


def test_where_the_free_space_is_not_known_the_first_commit_will_say_it(path, monkeypatch):
    def fail(_folder):
        raise OSError("not known here")

    monkeypatch.setattr(preflight.shutil, "disk_usage", fail)
    check_space(path, Layout(10**9, 1000), 10**6)
