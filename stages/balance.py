"""balance: report how evenly the classes are spread over the splits."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from imagepipe.core.lifetime import guard_stage

if __name__ == "__main__":
    guard_stage()  # before what takes long to import

from imagepipe.core.config import load_section
from imagepipe.core.stage import run_stage
from imagepipe.report.balance import BalanceParams, report_balance


def main(manifests_dir: Path, reports_dir: Path) -> None:
    verdict = report_balance(manifests_dir, reports_dir, load_section("balance", BalanceParams))
    for violation in verdict.violations:
        print(f"balance: warning: {violation}", file=sys.stderr)
    print(f"balance: {verdict.recommendation}")
    print(f"balance: {'uneven' if verdict.violations else 'even enough'}, see {reports_dir / 'balance.png'}")


if __name__ == "__main__":
    run_stage(main)
