"""The command `demo`."""

from argparse import Namespace
from contextlib import suppress

from pipeline import paths
from pipeline.commands import choose, models
from pipeline.running.process import one_line_errors


def run(arguments: Namespace) -> None:
    """Write the page, and serve it to this machine only."""
    from pipeline import parameters
    from pipeline.selection import table
    from pipeline.shipping import demo as page

    with one_line_errors():
        # The port comes first: if it is taken, the folder may be the one that is served there.
        server = None if arguments.build else page.server(arguments.folder, arguments.port)
        p = parameters.load()
        rows = table.read(paths.VARIANTS) if paths.VARIANTS.exists() else []
        classifiers = [models.opened(str(paths.onnx(variant)), threads=1) for variant in p.variants]
        page.build(
            arguments.folder,
            classifiers,
            {row.sha256: row for row in rows},
            models.samples(),
            choose.of_workspace(p).reason.replace("`", "") if rows else "",
        )
    if server is None:
        print(arguments.folder)
        return
    print(f"http://{page.LOOPBACK}:{server.server_port}/  (press Ctrl-C to stop)", flush=True)
    with server, suppress(KeyboardInterrupt):
        server.serve_forever()
