"""Read the images, split them, and write the prepared data."""

import sys

from pipeline import parameters, paths
from pipeline.data import listing, preparation, store, writing
from pipeline.running.process import stage


def main() -> None:
    """Write `artifacts/data/`."""
    p = parameters.load()
    contents = preparation.read(p.data)
    assigned, notes = preparation.divide(contents, p.data, p.seed)
    facts = {"source": p.data.source, "path": str(p.data.path), "license": p.data.license}
    report = writing.write(paths.DATA, contents, assigned, facts, train_side=p.data.train_side, notes=notes)
    for note in report.get("notes", ()):
        print(f"note: {note}", file=sys.stderr)
    if assigned.leaked:
        are = "image of train or val is" if assigned.leaked == 1 else "images of train or val are"
        print(f"note: {assigned.leaked:,} {are} left out, whose content is in val or test", file=sys.stderr)
    rejected = [*contents.rejected, *assigned.rejected]
    reasons = f" ({listing.count_kinds(rejected)}), listed in {paths.DATA / store.REPORT}" if rejected else ""
    print(
        f"{len(report['classes'])} {'classes' if report['task'] == 'single_label' else 'attributes'}; "
        + ", ".join(f"{count} {name}" for name, count in report["images"].items())
        + f"; {len(rejected)} rejected{reasons}"
    )


if __name__ == "__main__":
    with stage():
        main()
