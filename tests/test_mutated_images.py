"""Damaged image files are decoded or refused, and nothing else happens; the benchmark tries more of them."""

from benchmarks import mutated_images
from pipeline.data import images


def test_thousands_of_damaged_files_are_decoded_or_refused_within_bounds() -> None:
    outcome = mutated_images.run(count=3_000, seed=1)
    assert outcome.failures == []
    assert outcome.programs == []
    assert outcome.counts.total() == 3_000
    assert min(outcome.counts["decoded"], outcome.counts["refused"]) > 300
    assert outcome.peak_bytes < 1e9


def test_every_original_is_sound_and_every_damaged_file_depends_on_its_number_alone() -> None:
    files = mutated_images.originals()
    for content in files.values():
        assert images.decode(content).size == (24, 24)
    first, again = ([mutated_images.damaged(files, 3, number) for number in range(200)] for _ in range(2))
    assert first == again
    assert sum(content != files[name] for name, content in first) > 150
