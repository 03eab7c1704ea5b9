"""One walker of folders: what belongs to a set, in the order of its numbers."""

import os
import random

import pytest

from visual_ar.folder import list_files, list_folders, natural_key, tell

ORDER = [
    "10.png",
    "a/2.png",
    "a/10.png",
    "a-1/1.png",
    "frame02.png",
    "frame2.png",
    "frame٣.png",
    "frame10.png",
    "frame0010.png",
    "frame10a2.png",
    "frame10a10.png",
    "frame99999999999999999999.png",
    "frame100000000000000000000.png",
    "frame².png",
    "frame.png",
    "x",
    "\udce4.png",
]


def test_numbers_are_in_order_and_nothing_else_is_left_to_chance():
    expected = sorted(ORDER, key=natural_key)
    numbered = [name for name in expected if name.startswith("frame") and name[5:6].isdecimal()]
    assert numbered == [
        *("frame02.png", "frame2.png", "frame٣.png", "frame0010.png", "frame10.png"),
        *("frame10a2.png", "frame10a10.png"),
        *("frame99999999999999999999.png", "frame100000000000000000000.png"),
    ]
    assert expected.index("a/2.png") < expected.index("a/10.png") < expected.index("a-1/1.png")
    for seed in range(20):
        shuffled = random.Random(seed).sample(ORDER, len(ORDER))
        assert sorted(shuffled, key=natural_key) == expected


def filled(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def listed(root, **options):
    found = list_files(root, (".png",), **options)
    return [file.relative_to(root).as_posix() for file in found.files], found.passed_over


def test_hidden_files_and_other_endings_are_counted(tmp_path):
    hidden = ("._a.png", ".DS_Store", ".ipynb_checkpoints/a.png", "__MACOSX/b/._a.png")
    filled(tmp_path, "a.PNG", "b/c.png", "notes.txt", "b/more.TXT", "README", *hidden)
    files, passed = listed(tmp_path)
    assert files == ["a.PNG", "b/c.png"]
    assert passed == {".txt": 2, "hidden": 4, "without an ending": 1}
    assert tell(passed) == "2 .txt, 4 hidden, 1 without an ending"
    assert listed(tmp_path, below=False)[1]["folders"] == 1


def test_a_hidden_folder_that_was_asked_for_is_read(tmp_path):
    assert listed(filled(tmp_path / ".cache", "a.png")) == (["a.png"], {})


def test_links_are_followed_and_lead_in_no_circle(tmp_path):
    filled(tmp_path / "elsewhere", "cat/1.png", "2.png")
    root = filled(tmp_path / "set", "3.png")
    (root / "cat").symlink_to(tmp_path / "elsewhere" / "cat")
    (root / "4.png").symlink_to(tmp_path / "elsewhere" / "2.png")
    (root / "5.png").symlink_to(tmp_path / "elsewhere" / "2.png")
    (tmp_path / "elsewhere" / "cat" / "up").symlink_to(root)
    (root / "dog").symlink_to(root / "cat")
    files, passed = listed(root)
    assert files == ["3.png", "4.png", "5.png", "cat/1.png"]  # a file counts under every name
    assert passed == {"folders that were read already": 2}
    folders = list_folders(root)
    assert [folder.name for folder in folders.files] == ["cat"]
    assert folders.passed_over == {"files": 3, "folders that were read already": 1}


def test_many_links_to_each_other_are_read_once(tmp_path):
    for number in range(30):  # a path for every way through: 2^30
        filled(tmp_path / f"d{number}", "a.png")
        for name in ("x", "y"):
            (tmp_path / f"d{number}" / name).symlink_to(tmp_path / f"d{(number + 1) % 30}")
    assert len(listed(tmp_path / "d0")[0]) == 30


def test_broken_links_are_named(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(ValueError, match=r"a\.png must lead to a file or a folder, got a broken"):
        listed(tmp_path)
    (tmp_path / "a.png").unlink()
    (tmp_path / "b.png").symlink_to(tmp_path / "b.png")
    with pytest.raises(OSError, match=r"b\.png"):
        listed(tmp_path)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads every folder")
def test_an_unreadable_folder_is_named(tmp_path):
    filled(tmp_path, "closed/a.png")
    (tmp_path / "closed").chmod(0)
    try:
        with pytest.raises(PermissionError, match="closed"):
            listed(tmp_path)
    finally:
        (tmp_path / "closed").chmod(0o700)
