"""Read the images, split them, and write the prepared data."""

from pipeline import parameters, paths
from pipeline.data import sources, splits, store
from pipeline.process import stage


def main() -> None:
    """Write `artifacts/data/`."""
    p = parameters.load()
    listing = sources.read(p.data.source, p.data.path)
    assigned = splits.assign(
        listing.labelled,
        listing.unlabelled,
        train=p.data.train,
        val=p.data.val,
        test=p.data.test,
        seed=p.seed,
        anew=p.data.splits == "new",
    )
    facts = {"source": p.data.source, "path": str(p.data.path), "license": p.data.license}
    report = store.write(paths.DATA, listing, assigned, facts, train_side=p.data.train_side)
    print(
        f"{len(report['classes'])} {'classes' if report['task'] == 'single_label' else 'attributes'}; "
        + ", ".join(f"{count} {name}" for name, count in report["images"].items())
        + f"; {len(report['rejected'])} rejected"
    )


if __name__ == "__main__":
    with stage():
        main()
