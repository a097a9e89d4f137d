import pytest

from pipeline import files


def test_a_file_is_written_with_its_missing_folders(tmp_path):
    files.write(tmp_path / "a" / "b.txt", "ä")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "ä".encode()


def write_half(file):
    with files.replacing(file) as fresh:
        fresh.write_text("half")
        fresh.with_name("missing").read_text()


def test_an_error_leaves_the_previous_file_and_no_other(tmp_path):
    file = tmp_path / "b.txt"
    files.write(file, b"previous")
    with pytest.raises(FileNotFoundError):
        write_half(file)
    assert [path.name for path in tmp_path.iterdir()] == ["b.txt"]
    assert file.read_bytes() == b"previous"
