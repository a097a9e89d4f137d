"""Tables that list images, as spreadsheets and other systems write them."""

from pathlib import Path

import pytest
from PIL import Image

from pipeline.data import listing, sources, splits, tables
from pipeline.data.listing import Listing, SourceError


def write(folder: Path, content: str | bytes, files: tuple[str, ...] = ("a.png", "b.png")) -> Path:
    """Write metadata.csv and different images beside it."""
    for number, name in enumerate(files):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(file)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / tables.METADATA).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def labels(contents: Listing) -> dict[str, int | tuple[float, ...]]:
    return {image.source: image.label for image in contents.labelled}


@pytest.mark.parametrize(
    "content",
    [
        "file_name,red,big\na.png,1,0\nb.png,0,0.5\n",
        "file_name;red;big\r\na.png;1;0\r\nb.png;0;0.5\r\n",
        "file_name\tred\tbig\na.png\t1\t0\nb.png\t0\t0.5",
        "red|file_name|big\n1|a.png|0\n0|b.png|0.5\n",
        "\ufefffile_name,red,big\na.png,1,0\nb.png,0,0.5\n",
        "file_name,red,big\na.png,1,0\nb.png,0,0.5\n".encode("utf-16"),
        "\ufefffile_name;red;big\na.png;1;0\nb.png;0;0.5\n".encode("utf-16-be"),
        '"file_name","red","big"\n"a.png","1","0"\n"b.png","0","0.5"\n',
        " file_name , red ,big\n a.png ,1,0\n\n , , \nb.png, 0 ,0.5\n",
        "file_name,red,big\r./a.png,1,-1\rb.png,0,.5\r",
        "file_name,red,big\na.png,1,0\nb.png,0,0.5\na.png,1.0,-1\n",
        "\n \r\n,,\nfile_name,red,big\na.png,1,0\nb.png,0,0.5\n",
        "\ufeffsep=;\r\nfile_name;red;big\r\na.png;1;0\r\nb.png;0;0.5\r\n",
        '"sep=,"\nred,file_name,big\n1,a.png,0\n0,b.png,0.5\n',
    ],
)
def test_tables_are_read_as_spreadsheets_write_them(tmp_path: Path, content: str | bytes) -> None:
    contents = sources.attributes(write(tmp_path, content))
    assert contents.classes == ("red", "big")
    assert labels(contents) == {"a.png": (1.0, 0.0), "b.png": (0.0, 0.5)}


def test_windows_separators_are_those_of_this_system_unless_a_file_has_that_name(tmp_path: Path) -> None:
    content = "file_name,red\none\\two\\a.png,1\nc\\d.png,0\n.\\b.png,1\n"
    root = write(tmp_path, content, ("one/two/a.png", "c\\d.png", "b.png"))
    assert labels(sources.attributes(root)) == {"one/two/a.png": (1.0,), "c\\d.png": (0.0,), "b.png": (1.0,)}


def test_split_folders_with_tables_have_the_names_that_people_use(tmp_path: Path) -> None:
    for number, split in enumerate(("Training", "valid", "test_set")):
        write(tmp_path / split, f"file_name,red\n{number}.png,1\n", (f"{number}.png",))
    assert [image.split for image in sources.attributes(tmp_path).labelled] == ["train", "test", "val"]


ROWS = "".join(f"{{0}}{number}.png,{number % 2},1\n" for number in range(2))
HEADER = "file_name,red,big\n"


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (("train/", "test/"), ["train", "train", "test", "test"]),
        (("Training/", "valid/", "test_set/"), ["train", "train", "val", "val", "test", "test"]),
        (("data/train/", "data/test/"), ["train", "train", "test", "test"]),
        (("./train/cats/", "./test/cats/"), ["train", "train", "test", "test"]),
        (("train/", "test/", "more/"), ["train", "train", "test", "test", None, None]),
        (("train/",), [None, None]),
        (("test/",), [None, None]),
        (("train/", "prueba/"), [None] * 4),
        (("", "deep/"), [None] * 4),
    ],
)
def test_rows_of_files_in_split_folders_keep_their_split(
    tmp_path: Path, folders: tuple[str, ...], expected: list[str | None]
) -> None:
    files = tuple(f"{folder}{number}.png" for folder in folders for number in range(2))
    root = write(tmp_path, HEADER + "".join(ROWS.format(folder) for folder in folders), files)
    contents = sources.attributes(root)
    order = {file.removeprefix("./"): split for file, split in zip(files, expected, strict=True)}
    assert {image.source: image.split for image in contents.labelled} == order
    noted = " ".join(contents.notes)
    divided = len(folders) > 1 and "" not in folders
    assert [folder for folder in folders if divided and f"`{Path(folder).parts[0]}" not in noted] == (
        ["more/"] if "more/" in folders else []
    )


def test_a_table_beside_and_one_in_the_folder_of_a_split_agree(tmp_path: Path) -> None:
    write(tmp_path / "train", HEADER + ROWS.format(""), ("0.png", "1.png"))
    root = write(
        tmp_path, HEADER + ROWS.format("train/") + ROWS.format("test/"), ("test/0.png", "test/1.png")
    )
    contents = sources.attributes(root)
    assert [image.split for image in contents.labelled] == ["train", "train", "test", "test"]
    assert {item.kind for item in contents.rejected} == {"duplicate"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("prueba/metadata.csv", ["`prueba`", "train, val or test"]),
        ("test/metadata.jsonl", ["`test`", "save it as metadata.csv"]),
        ("test/METADATA.CSV", ["`test`", "save it as metadata.csv"]),
        ("deep/test/metadata.csv", ["`deep/test`"]),
    ],
)
def test_a_table_that_would_be_left_out_with_its_pictures_is_refused(
    tmp_path: Path, name: str, words: list[str]
) -> None:
    write(tmp_path / "train", HEADER + ROWS.format(""), ("0.png", "1.png"))
    file = write(tmp_path / Path(name).parent, HEADER, ("0.png",)) / tables.METADATA
    file.rename(tmp_path / name)
    with pytest.raises(SourceError) as caught:
        sources.attributes(tmp_path)
    [line] = str(caught.value).splitlines()
    assert [word for word in [name, *words] if word not in line] == []


def test_a_table_whose_pictures_another_one_names_is_listed_and_noted(tmp_path: Path) -> None:
    write(tmp_path / "more", HEADER, ("0.png", "1.png"))
    contents = sources.attributes(write(tmp_path, HEADER + ROWS.format("more/"), ()))
    assert [item.source for item in contents.rejected] == ["more/metadata.csv"]
    assert any("more/metadata.csv" in note for note in contents.notes)


def test_names_of_files_without_their_suffix_are_told_apart_from_missing_files(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        sources.attributes(write(tmp_path, HEADER + "a,1,1\nb,0,1\nc,0,1\n"))
    head, *lines = str(caught.value).splitlines()
    assert "none of the 3 files" in head
    assert ["suffix" in line for line in lines] == [True, True, False]
    contents = sources.attributes(write(tmp_path, HEADER + "a.png,1,1\nb,0,1\n"))
    with pytest.raises(SourceError, match="1 of 2 image files"):
        listing.refuse_losses(contents, 0.1)


@pytest.mark.parametrize("pair", [("Red", "red"), ("red", "re\u200bd"), ("1", "01"), ("cat", "c\u0430t")])
def test_attributes_of_one_name_are_refused(tmp_path: Path, pair: tuple[str, str]) -> None:
    with pytest.raises(SourceError) as caught:
        sources.attributes(write(tmp_path, f"file_name,{','.join(pair)}\na.png,1,0\n"))
    [line] = str(caught.value).splitlines()
    assert "metadata.csv" in line
    root = write(tmp_path, "file_name,cafe,café\na.png,1,0\n")
    assert any("`café`" in note for note in sources.attributes(root).notes)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("file_name,red\na.png," + "x" * 200_000, ["line 2", "red", "a number from 0 to 1"]),
        ('file_name,red\na.png,"1\nb.png,0\n', ["line 3", "not a CSV table"]),
        ('file_name,red\n"a.png"x,1\n', ["line 2", "not a CSV table"]),
        ("file_name,red\na.png,1,0\n", ["line 2", "2 values", "found 3"]),
        ("file_name,red\na.png\n", ["line 2", "2 values", "found 1"]),
        ("file_name;red\na.png;0,5\n", ["line 2", "red = '0,5'"]),
        ("file_name,red\na.png,nan\n", ["line 2", "red = 'nan'"]),
        ("file_name,red\na.png,\n", ["line 2", "red = ''"]),
        ("file_name,red\na.png,yes\n", ["line 2", "red = 'yes'"]),
        ("file_name,red\n,1\n", ["line 2", "file_name = ''"]),
        ("file_name,red\n.,1\n", ["line 2", "file_name = '.'"]),
        ("file_name,red\n/etc/passwd,1\n", ["line 2", "'/etc/passwd'"]),
        ("file_name,red\nC:\\photos\\a.png,1\n", ["line 2", "C:", "a path below"]),
        ("file_name,red\n\\\\server\\a.png,1\n", ["line 2", "server", "a path below"]),
        ("file_name,red\n..\\a.png,1\n", ["line 2", "a path below"]),
        ("file_name,red\na.png,1\na.png,0\n", ["line 3", "'a.png'", "line 2"]),
        ("file_name,red, red\na.png,1,0\n", ["must differ", "red"]),
        (",file_name,red\n0,a.png,1\n", ["column 1", "no name", "index"]),
        ("Unnamed: 0,file_name,red\n0,a.png,1\n", ["column 1", "Unnamed: 0"]),
        ("file_name,red, \na.png,1,1\n", ["column 3", "no name"]),
        ("file_name,red\na.png,0_1\n", ["line 2", "red = '0_1'"]),
        ("file_name\na.png\n", ["the column file_name and at least one other"]),
        ("File_Name,red\na.png,1\n", ["the column file_name", "File_Name"]),
        ("", ["the column file_name", "none"]),
        ("sep=;\nfile_name;red\na.png;2\n", ["line 3", "red = '2'"]),
        ("file_name,red\n", ["no row"]),
        ("file_name,red\n\n , \n", ["no row"]),
        ("file_name,red\na.png,1\n".encode("utf-16-le"), ["line 1", "UTF-8"]),
        (b"file_name,red\na.png,1\0\n", ["line 2", "UTF-8"]),
        ("file_name,gr\u00fcn\na.png,1\n".encode("latin-1"), ["not in UTF-8", "line 1"]),
        (b"\xff\xfef", ["not in UTF-16"]),
        (b"PK\x03\x04\xff\xfe", ["not in UTF-8"]),
    ],
)
def test_wrong_tables_are_one_line_with_the_file_and_the_line(
    tmp_path: Path, content: str | bytes, words: list[str]
) -> None:
    with pytest.raises(SourceError) as caught:
        sources.attributes(write(tmp_path, content))
    [line] = str(caught.value).splitlines()
    assert str(tmp_path / tables.METADATA) in line
    assert [word for word in words if word not in line] == []
    assert len(line) < 1000


def test_a_table_that_is_a_folder_or_unreadable_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / tables.METADATA).mkdir()
    with pytest.raises(SourceError, match=r"metadata\.csv is not a file"):
        sources.attributes(tmp_path)
    (tmp_path / tables.METADATA).rmdir()
    write(tmp_path, "file_name,red\na.png,1\n")

    def refuse(_file: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(SourceError, match=r"metadata\.csv could not be read: Permission denied"):
        sources.attributes(tmp_path)


def test_missing_files_are_listed_and_count_as_damaged_and_others_are_listed(tmp_path: Path) -> None:
    content = "file_name,red\na.png,1\ngone.png,0\ndeep/gone.png,0\nb.png,0\n"
    root = write(tmp_path, content, ("a.png", "b.png", "other.png", "deep/other.png"))
    (root / "notes.txt").write_text("x")
    contents = sources.attributes(root)
    assert {item.source: item.kind for item in contents.rejected} == {
        "gone.png": "missing",
        "deep/gone.png": "missing",
        "other.png": "unlabelled",
        "deep/other.png": "unlabelled",
        "notes.txt": "no image",
    }
    with pytest.raises(SourceError, match=r"2 of 4 image files"):
        listing.refuse_losses(contents, 0.1)


def test_a_row_that_is_repeated_is_listed(tmp_path: Path) -> None:
    contents = sources.attributes(write(tmp_path, "file_name,red\na.png,1\nb.png,0\n./a.png,1\n"))
    [item] = contents.rejected
    assert (item.source, item.kind) == ("a.png", "duplicate")
    assert "line 4" in item.reason


def test_an_attribute_that_every_training_image_has_or_none_is_noted(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(8)]
    rows = "".join(f"{name},1,0,{number % 2}\n" for number, name in enumerate(names))
    contents = sources.attributes(write(tmp_path, f"file_name,red,big,odd\n{rows}", tuple(names)))
    assigned = splits.assign(contents.labelled, train=None, val=0.25, test=0.25, seed=0)
    notes = splits.check(contents, assigned)
    assert [name for name in contents.classes if any(f"'{name}'" in note for note in notes)] == ["red", "big"]
    assert [note.partition(" ")[0] for note in notes] == ["every", "no"]
