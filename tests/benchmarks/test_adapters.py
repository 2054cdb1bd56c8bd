"""Counts of adapters: how a batch is made up, and in which unit memory is told."""

from benchmarks import adapters


def test_a_quarter_of_a_batch_is_tail_and_no_batch_without():
    assert [adapters.tail_rows(size) for size in (1, 3, 4, 64)] == [1, 1, 1, 16]


def test_megabytes_are_of_two_to_the_twenty():
    assert adapters.megabytes(3 * 1024 * 1024 + 1024 * 512) == 3.5
