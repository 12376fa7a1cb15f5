"""Run the server and the command line together under load and with faults, and judge every outcome.

    python tools/soak                            10 minutes
    python tools/soak --seconds 60 --seed 1      one minute, with a repeatable mix of requests

The exit status is 1 if any outcome was neither right nor an expected error.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from pathlib import Path

# The soak uses the hub, the server and the models of the tests.
sys.path.append(str(Path(__file__).parents[2] / "tests_2.0"))

from audit import Findings, audit, report
from judge import Judge, Timeline
from librarian import Librarian
from life import Life
from load import Load
from programs import Programs
from world import World, world


async def soak(place: World, judge: Judge, life: Life, *, seed: int, seconds: float) -> Findings | None:
    """Fill the cache, start the server, put it under load, and check what is left at the end."""
    programs = Programs(place, judge)
    librarian = Librarian(place, judge, programs, random.Random(f"{seed} librarian"))
    load = Load(seed, seconds, judge, life, librarian)
    try:
        await librarian.fill()
        await life.start()
        await load.learn()
        await load.run()
        return await audit(place, judge, life, librarian, programs)
    finally:
        life.kill()


def main() -> int:
    """Soak, print the report, and return the exit status."""
    parser = argparse.ArgumentParser(prog="soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600, help="duration of the load (default: 600)")
    parser.add_argument("--seed", type=int, help="the seed of the mix of requests and faults (default: random)")
    args = parser.parse_args()
    seed = random.randrange(1 << 16) if args.seed is None else args.seed
    judge = Judge(Timeline(), seed)
    with world() as place:
        life = Life(place, judge)
        findings = asyncio.run(soak(place, judge, life, seed=seed, seconds=args.seconds))
    print("\n".join(report(judge, life, findings, seed=seed, seconds=args.seconds)))
    return 1 if judge.unexpected else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)
