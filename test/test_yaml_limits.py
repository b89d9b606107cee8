"""YAML bombs are refused before anything is loaded; ordinary files pass."""

import pytest
import yaml

from magicfuse_ros.bags.reader import BagError, BagReader
from magicfuse_ros.yaml_limits import (
    MAX_BYTES,
    MAX_DEPTH,
    YamlLimitError,
    load_yaml,
    read_yaml_text,
)


def laughs(levels):
    """Return YAML of some hundred bytes whose last entry stands for 10^levels texts."""
    lines = ["a0: &a0 ha"]
    lines += [
        f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]"
        for level in range(1, levels + 1)
    ]
    return "\n".join(lines) + "\n"


def written(folder, text):
    path = folder / "metadata.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_aliases_that_stand_for_little_are_taken(tmp_path):
    text = laughs(3) + "merged: {<<: &base {x: 1}, y: 2}\n"

    assert read_yaml_text(written(tmp_path, text)) == text
    assert len(yaml.safe_load(text)["a3"]) == 10


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (laughs(9), "aliases make more of it"),
        (f"long: &long {'x' * 100_000}\nmany: [{', '.join(['*long'] * 200)}]\n", "aliases make"),
        ("[" * (MAX_DEPTH + 1), "nested deeper"),
        ("[" * 1_000_000, "nested deeper"),
        ("a: &a [*a]\n", r"alias \*a stands for"),
        ("a: *b\n", r"alias \*b stands for"),
    ],
    ids=["laughs", "long text", "deep", "very deep", "itself", "nothing"],
)
def test_bombs_are_refused(tmp_path, text, complaint):
    with pytest.raises(YamlLimitError, match=complaint):
        read_yaml_text(written(tmp_path, text))


@pytest.mark.parametrize(
    "value", ["!!int ''", "2001-13-01", "!!bool maybe", "!!timestamp soon", "!!float ''"]
)
def test_a_value_that_is_not_of_its_kind_is_an_error_of_yaml(tmp_path, value):
    with pytest.raises(yaml.YAMLError, match="not of its kind"):
        load_yaml(written(tmp_path, f"a: {value}\n"))


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "labels.yaml"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)

    with pytest.raises(YamlLimitError, match=f"{MAX_BYTES + 1} bytes"):
        read_yaml_text(path)


# rosbags puts what it does not know into its message: this one would take 10^9 texts.
BOMB = (
    laughs(9)
    + """rosbag2_bagfile_information:
  version: 9
  storage_identifier: mcap
  relative_file_paths: []
  compression_mode: file
  compression_format: *a9
"""
)


@pytest.mark.parametrize("text", [BOMB, "[" * 1_000_000], ids=["laughs", "deep"])
def test_the_metadata_of_a_bag_is_checked(tmp_path, text):
    written(tmp_path, text)

    with pytest.raises(BagError, match="YamlLimitError"):
        BagReader(tmp_path)


@pytest.mark.parametrize("name", ["/etc/passwd", "../outside.mcap", "sub/../../outside.mcap"])
def test_a_bag_reads_no_file_outside_of_its_folder(tmp_path, name):
    """rosbags takes the last part of a name only, so the file is looked for in the folder."""
    folder = tmp_path / "bag"
    folder.mkdir()
    (tmp_path / "outside.mcap").write_bytes(b"")
    metadata = {
        "version": 9,
        "storage_identifier": "mcap",
        "relative_file_paths": [name],
        "topics_with_message_count": [],
    }
    written(folder, yaml.safe_dump({"rosbag2_bagfile_information": metadata}))

    with pytest.raises(BagError, match="Some database files are missing") as caught:
        BagReader(folder)

    assert str(folder / name.rpartition("/")[2]) in str(caught.value)
