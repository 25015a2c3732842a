"""What a run wrote: its places here, how much of it comes, and how that is said."""

from __future__ import annotations

from nexa_dist.plan.runs.results import Wrote, bounded, counted, placed, sized


def row(node: str, name: str, size: int = 1) -> Wrote:
    return Wrote(node, name, f"work/{name}", size, 1, "outputs")


def test_the_first_node_has_the_name_and_the_others_a_folder() -> None:
    rows = [row("n0", "a"), row("n0", "d/b"), row("n1", "a"), row("n1", "c"), row("n2", "c")]
    assert [(one.into, one.first and one.first.node) for one in placed(rows)] == [
        ("a", None), ("d/b", None), ("n1/a", "n0"), ("c", None), ("n2/c", "n1"),
    ]  # fmt: skip


def test_no_two_files_get_one_place_and_none_is_a_folder_of_another() -> None:
    rows = [row("n0", "n1/a"), row("n0", "n2"), row("n0", "a"), row("n1", "a"), row("n2", "a"), row("n1", "a/b")]
    made = [one.into for one in placed(rows)]
    assert len(set(made)) == len(rows) and made[:3] == ["n1/a", "n2", "a"]
    for one in made:
        assert not any(other.startswith(f"{one}/") for other in made), made


def test_the_small_ones_come_by_themselves() -> None:
    files = placed([row("n0", "a", 50), row("n0", "b", 60), row("n0", "c", 5), row("n0", "d", 0)])
    now, later = bounded(files, 60)
    assert [one.into for one in now] == ["a", "c", "d"] and [one.into for one in later] == ["b"]
    assert bounded(files, float("inf")) == (files, [])


def test_files_are_counted_with_their_size_and_the_largest_names() -> None:
    assert counted([row("n0", "a", 999)]) == "1 file (999 B)"
    files = [row("n0", name, size) for size, name in enumerate("abcdefg")]
    assert counted(files, names=True) == "7 files (21 B): g, f, e, d, c, …"
    assert [sized(n) for n in (0, 1000, 123456, 2 << 30, 5e15)] == ["0 B", "1.0 kB", "123 kB", "2.1 GB", "5000.0 TB"]
