from __future__ import annotations

import os
from pathlib import Path

import pytest

from flaxtrain.checkpoint.steps import check_path, clean_up, latest, step_path, steps
from flaxtrain.errors import ArgumentError, ArgumentTypeError, CheckpointError


def test_steps_are_ordered_by_number_not_by_text(tmp_path):
    for name in ("9", "10", "100"):
        (tmp_path / name).mkdir()
    assert steps(tmp_path) == [9, 10, 100]
    assert latest(tmp_path) == tmp_path / "100"


@pytest.mark.parametrize(
    "name", ["-1", "+1", "1.0", "1e3", " 1", "007", "٣", "1\n", "step_1", ".5.partial-0a", "1 "]
)
def test_other_names_are_no_checkpoints(tmp_path, name):
    (tmp_path / name).mkdir()
    assert steps(tmp_path) == []


def test_files_are_no_checkpoints(tmp_path):
    (tmp_path / "5").write_text("")
    assert steps(tmp_path) == []


def test_a_directory_that_is_not_there_has_none(tmp_path):
    assert steps(tmp_path / "nowhere") == [] and latest(tmp_path / "nowhere") is None


def test_a_file_in_place_of_the_directory_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="can't list"):
        steps(tmp_path / "file")


def test_step_path_is_what_steps_reads(tmp_path):
    step_path(tmp_path, 0).mkdir()
    assert steps(tmp_path) == [0]


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(("step", "error"), [(-1, ArgumentError), (1.5, ArgumentTypeError)])
def test_a_step_is_a_natural_number(tmp_path, step, error):
    with pytest.raises(error):
        step_path(tmp_path, step)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("", ArgumentError),
        ("a\0b", ArgumentError),
        (5, ArgumentTypeError),
        (b"x", ArgumentTypeError),
    ],
)
def test_paths_that_are_none_are_refused(path, error):
    with pytest.raises(error):
        check_path(path)


def test_paths_are_absolute_and_without_dots(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert check_path("a/../b") == tmp_path.resolve() / "b"


def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check_path("~/run") == tmp_path.resolve() / "run"


class TestCleanUp:
    def test_unfinished_saves_go_and_everything_else_stays(self, tmp_path):
        for name in ("5", ".6.partial-0a1b", ".git", "notes", ".x.partial"):
            (tmp_path / name).mkdir()
        (tmp_path / ".7.partial-00").write_text("a file")
        assert clean_up(tmp_path) == [tmp_path / ".6.partial-0a1b"]
        assert sorted(os.listdir(tmp_path)) == [
            ".7.partial-00",
            ".git",
            ".x.partial",
            "5",
            "notes",
        ]

    def test_a_checkpoint_whose_replacement_was_interrupted_comes_back(self, tmp_path):
        (tmp_path / ".5.replaced-0a").mkdir()
        (tmp_path / ".5.replaced-0a" / "content").write_text("")
        clean_up(tmp_path)
        assert steps(tmp_path) == [5] and (tmp_path / "5" / "content").exists()

    def test_a_checkpoint_that_was_replaced_goes(self, tmp_path):
        (tmp_path / ".5.replaced-0a").mkdir()
        (tmp_path / "5").mkdir()
        clean_up(tmp_path)
        assert os.listdir(tmp_path) == ["5"]

    def test_links_are_not_followed(self, tmp_path):
        outside = tmp_path / "outside"
        outside.mkdir()
        inside = tmp_path / "inside"
        inside.mkdir()
        (inside / ".5.partial-0a").symlink_to(outside)
        assert clean_up(inside) == [] and outside.is_dir()

    def test_a_directory_that_is_not_there_is_clean(self, tmp_path):
        assert clean_up(tmp_path / "nowhere") == []


def test_paths_may_be_text_or_path_objects(tmp_path):
    assert check_path(str(tmp_path)) == check_path(Path(tmp_path))
