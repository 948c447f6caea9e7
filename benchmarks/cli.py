"""What a user waits for before any work is done: `patchsae --help`, and a `demo` that is fully cached."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.report import Measurement, parser, report, seconds


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--store", default="./store", help="where `patchsae demo` has been, or will be, run")
    arguments = options.parse_args()
    patchsae = [sys.executable, "-m", "patchsae.flows.cli.app"]
    demo = [*patchsae, "demo", "--store", arguments.store]

    def run(command: list[str]) -> None:
        subprocess.run(command, check=True, capture_output=True)

    run(demo)
    report(
        "start-up",
        {
            "patchsae --help": Measurement(
                value=seconds(lambda: run([*patchsae, "--help"])), target=1.0, unit="s"
            ),
            "cached demo": Measurement(value=seconds(lambda: run(demo)), target=20.0, unit="s"),
        },
        arguments.json,
    )


if __name__ == "__main__":
    main()
