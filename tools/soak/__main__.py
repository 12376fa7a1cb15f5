"""Run server and command line together under load and with faults, and judge everything that comes of it.

    python tools/soak                            10 minutes
    python tools/soak --seconds 60 --seed 1      less, and the same mix again

The exit status is 1 if anything was not right or a clean error that was to be expected.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from pathlib import Path

# The hub, the server and the models of the tests serve here, too.
sys.path.append(str(Path(__file__).parents[2] / "tests_2.0"))

from audit import Findings, audit, report
from judge import Judge, Timeline
from librarian import Librarian
from life import Life
from load import Load
from programs import Programs
from world import World, world


async def soak(place: World, judge: Judge, life: Life, *, seed: int, seconds: float) -> Findings | None:
    """Fill the cache, start the server, load it, and see what is left; None if something went wrong on the way."""
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
    parser.add_argument("--seconds", type=float, default=600, help="how long the load goes on (default: 600)")
    parser.add_argument("--seed", type=int, help="what is asked and broken when (default: another one each time)")
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
