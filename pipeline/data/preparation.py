"""The images of a source with the names, labels and splits that the settings give them."""

from pipeline.data import listing, relabelling, sources, splits
from pipeline.data.listing import Listing, SourceError
from pipeline.data.settings import DataSettings, LabelTable
from pipeline.data.splits import Splits


def read(data: DataSettings) -> Listing:
    """Read everything that a source holds, with its names of classes and its labels for training.

    Raises:
        SourceError: the folder, a name or a table cannot be used; the message says what is expected.
    """
    contents = sources.read(data.source, data.path, data.layout)
    if data.names:
        contents = relabelling.rename(contents, data.names)
    if data.labels is not None:
        contents = relabelling.relabel(contents, data.path, data.labels)
    if isinstance(data.verified, LabelTable):
        contents = relabelling.relabel(contents, data.path, data.verified, verified=True)
    if data.splits == "val_as_test":
        contents = relabelling.hold_out_val(contents)
    listing.refuse_losses(contents, data.max_rejected)
    return contents


def divide(contents: Listing, data: DataSettings, seed: int) -> tuple[Splits, list[str]]:
    """Assign the images to train, val and test.

    Returns:
        The splits, and what a person should know about them, one sentence each.

    Raises:
        SourceError: a split or a class in it would be empty.
    """
    anew = data.splits == "new"
    assigned = splits.assign(
        contents.labelled,
        contents.unlabelled,
        train=data.train,
        val=data.val,
        test=data.test,
        seed=seed,
        anew=anew,
        verified=None if isinstance(data.verified, LabelTable) else data.verified,
    )
    notes = splits.check(contents, assigned, anew=anew)
    if data.labels is not None:
        notes.append(
            f"{data.labels.table}, column {data.labels.column}: {assigned.relabelled:,} of "
            f"{len(assigned.train):,} training images have another label than that of their folder"
        )
    if data.verified is not None:
        if not assigned.verified:
            raise SourceError(
                "data.verified: none of the images that it names is a training image; images of val and test "
                "keep the labels of their folders"
            )
        notes.append(
            f"the labels of {assigned.verified:,} of {len(assigned.train):,} training images are known to be "
            "right"
        )
    return assigned, notes
