import pytest

from pipeline import files


def test_a_file_is_written_with_its_missing_folders(tmp_path):
    files.write(tmp_path / "a" / "b.txt", "ä")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "ä".encode()


def test_an_error_leaves_the_previous_file_and_no_other(tmp_path):
    file = tmp_path / "b.txt"
    files.write(file, b"previous")
    with pytest.raises(RuntimeError), files.replacing(file) as fresh:
        fresh.write_text("half")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["b.txt"]
    assert file.read_bytes() == b"previous"
