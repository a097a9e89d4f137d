from pipeline.models.histories import continued


def test_parts_of_a_training_count_their_epochs_and_steps_on() -> None:
    # Half an epoch, then one and a quarter, then three whole ones.
    parts = [(5, 0.5), (10, 1.0), (12, 1.25), (10, 1.0), (20, 2.0), (30, 3.0)]
    joined = continued({"step": step, "epoch": epoch, "loss": 0.1} for step, epoch in parts)
    assert [line["epoch"] for line in joined] == [0.5, 1.5, 1.75, 2.75, 3.75, 4.75]
    assert [line["step"] for line in joined] == [5, 15, 17, 27, 37, 47]
    assert {line["loss"] for line in joined} == {0.1}


def test_a_training_of_one_part_and_one_without_steps_stay_as_they_are() -> None:
    history = [{"epoch": 1.0}, {"epoch": 2.0}, {"epoch": 2.8}]
    assert continued(history) == history
    assert continued([]) == []
