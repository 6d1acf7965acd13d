import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from search_fixtures import as_dicts, babble, make_problems, search

from pipeline_lib.search import TreeWriter, read_trees, read_trees_parquet, write_trees_parquet
from pipeline_lib.search.tree_files import PARQUET_SCHEMA


@pytest.fixture(scope="module")
def trees():
    return list(search(babble, make_problems(4))[0].values())


def dicts(trees):
    return as_dicts({tree.problem_id: tree for tree in trees})


def write(path, trees):
    with TreeWriter(path) as writer:
        for tree in trees:
            writer.append(tree)


def test_what_is_appended_is_read_back(tmp_path, trees):
    path = tmp_path / "trees.jsonl"
    write(path, trees[:2])
    write(path, trees[2:])
    read = read_trees(path)
    assert [tree.problem_id for tree in read] == [tree.problem_id for tree in trees]
    assert dicts(read) == dicts(trees)
    assert (read[0].visits.dtype, read[0].outcomes.dtype, read[0].token_ids[0].dtype) == ("int32", "int8", "int32")


def test_no_file_means_no_trees(tmp_path):
    assert read_trees(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("cut", [1, 2, 50])
def test_a_torn_last_record_is_dropped_on_reopening(tmp_path, trees, cut):
    path = tmp_path / "trees.jsonl"
    write(path, trees[:3])
    path.write_bytes(path.read_bytes()[:-cut])
    assert dicts(read_trees(path)) == dicts(trees[:2])
    write(path, trees[2:])
    assert dicts(read_trees(path)) == dicts(trees)


def test_a_tree_is_on_file_before_the_writer_is_closed(tmp_path, trees):
    path = tmp_path / "trees.jsonl"
    writer = TreeWriter(path)
    writer.append(trees[0])
    assert dicts(read_trees(path)) == dicts(trees[:1])
    writer.close()
    writer.close()


def test_damage_before_the_end_is_named(tmp_path, trees):
    path = tmp_path / "trees.jsonl"
    write(path, trees)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b'{"seed": 3}\n', *lines[2:]]))
    with pytest.raises(ValueError, match=r"trees\.jsonl, line 2: not a search tree"):
        read_trees(path)


def test_parquet_bytes_depend_on_the_trees_alone(tmp_path, trees):
    write_trees_parquet(trees, tmp_path / "a.parquet")
    write_trees_parquet(reversed(trees), tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert dicts(read_trees_parquet(tmp_path / "a.parquet")) == dicts(trees)


def test_surprisals_are_on_file_where_a_tree_has_them_and_nothing_of_them_elsewhere(tmp_path, trees):
    measured = list(search(babble, make_problems(3), selection="entropy")[0].values())
    plain = [tree for tree in trees if tree.problem_id.endswith("3")]
    for name, some in {"plain": plain, "measured": measured, "both": [*plain, *measured]}.items():
        write_trees_parquet(some, tmp_path / f"{name}.parquet")
        write(tmp_path / f"{name}.jsonl", some)
        columns = [*PARQUET_SCHEMA.names, *(["surprisals"] if name != "plain" else [])]
        assert pq.read_schema(tmp_path / f"{name}.parquet").names == columns
        assert (b"surprisals" in (tmp_path / f"{name}.jsonl").read_bytes()) == (name != "plain")
        for read in (read_trees_parquet(tmp_path / f"{name}.parquet"), read_trees(tmp_path / f"{name}.jsonl")):
            assert dicts(read) == dicts(some)
            assert {tree.surprisals.dtype for tree in read} == {np.dtype(np.float32)}
    assert [len(tree.surprisals) for tree in read_trees_parquet(tmp_path / "both.parquet")][-1] == 0


def test_no_trees_make_a_file_too(tmp_path):
    write_trees_parquet([], tmp_path / "none.parquet")
    assert read_trees_parquet(tmp_path / "none.parquet") == []


def test_another_parquet_file_is_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"question": ["?"]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match=r"other\.parquet: not a file of search trees; its columns are question"):
        read_trees_parquet(tmp_path / "other.parquet")


def test_importing_the_search_loads_nothing_heavy():
    code = (
        "import sys, pipeline_lib.search; sys.exit(bool({'torch', 'prefect', 'mlflow', 'pandas'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
